"""What Weights & Biases gets of a run, read from the file that its client writes without a network."""

import json
import struct

import pytest
from wandb.proto import wandb_internal_pb2

from tests import commands
from tests.fairchem2.running import command

pytestmark = pytest.mark.slow
HEADER, BLOCK, RECORD, FULL, LAST = 7, 32768, struct.Struct("<IHB"), 1, 4
LOGGER = "fairchem.core.common.logger.WandBSingletonLogger.init_wandb"


def records_of(path):
    """What a file of the client holds: records in blocks, as LevelDB's logs have them."""
    data, place, whole = path.read_bytes(), HEADER, b""
    while place + RECORD.size <= len(data):
        if (left := BLOCK - place % BLOCK) < RECORD.size:
            place += left
            continue
        _, length, kind = RECORD.unpack_from(data, place)
        place += RECORD.size
        whole += data[place : place + length]
        place += length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def rows_of(path):
    """The rows of a run's history, with the values of each."""
    for record in records_of(path):
        if record.HasField("history"):
            items = record.history.item
            yield {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items}


def test_no_step_is_lost_to_a_validation(inputs, tmp_path):
    logger = [f"+job.logger._target_={LOGGER}", "+job.logger._partial_=true"]
    logger += ["+job.logger.entity=us", "+job.logger.project=test"]
    typed = command(inputs, tmp_path / "runs", "--mode", "train", *logger)[1:]
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    done = commands.fairchem(*typed, env=offline)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.rglob("*.wandb")
    rows = list(rows_of(path))
    stored = json.loads((tmp_path / "runs/gdeq/results/test.json").read_text())["history"]
    for key, entries in (("train/loss", stored["steps"]), ("val/delta_q_mean", stored["epochs"])):
        name = key.removeprefix("val/")
        logged = [row[key] for row in rows if key in row]
        assert logged == pytest.approx([entry[name] for entry in entries]), key
