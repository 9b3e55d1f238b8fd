"""What changes the digits that name a journal of predictions, and what does not."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairchem_gdeq.evaluation import fingerprint as module
from fairchem_gdeq.evaluation.fingerprint import code, fingerprint
from fairchem_gdeq.evaluation.task import RelaxationTask
from fairchem_gdeq.relax import Descent, Relaxer


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 3)
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("derived", torch.ones(2), persistent=False)
        self.layer.cutoff, self.shape, self.device = 6.0, (2, 3), torch.device("cpu")


@dataclass
class Task:
    name: str
    normalizer: nn.Module


def changed(change):
    model = Model()
    with torch.no_grad():
        change(model)
    return fingerprint(model)


def test_a_model_has_its_own():
    expected = fingerprint(Model())
    assert len(expected) == 12 and fingerprint(copy.deepcopy(Model())) == expected
    assert changed(lambda m: m.eval()) == expected, "not what it is, but what it does"
    assert changed(lambda m: setattr(m, "_count", 3)) == expected, "what it keeps for itself"
    others = [
        changed(lambda m: m.layer.weight[0, 0].add_(1e-6)),
        changed(lambda m: m.mean.add_(1.0)),
        changed(lambda m: setattr(m.layer, "cutoff", 3.0)),
        changed(lambda m: setattr(m, "shape", (3, 2))),
        changed(lambda m: m.double()),
    ]
    assert len({expected, *others}) == 6


def test_settings_and_units_count():
    def of(scale=1.0, width=4, learnt=0.0, **settings):
        is2rs = RelaxationTask(descent=Descent(decoder=width), **settings)
        with torch.no_grad():
            for parameter in is2rs.descent.decoder.parameters():
                parameter.add_(learnt)
        tasks = [Task("forces", Model())]
        tasks[0].normalizer.mean.mul_(scale)
        return fingerprint(is2rs, tasks)

    assert of() == of()
    others = [of(4.0), of(width=8), of(learnt=0.1), of(alpha=0.2), of(relaxer=Relaxer(horizon=3))]
    assert len({of(), *others}) == 6


@pytest.mark.parametrize("value", [SimpleNamespace(), object(), lambda: None])
def test_where_something_is_in_memory_does_not(value):
    class Other:
        pass

    assert fingerprint(Other()) == fingerprint(Other())
    assert fingerprint(value) == fingerprint(copy.copy(value))


def test_a_part_that_prints_as_nothing_counts_by_what_it_is_made_with():
    """Such as a solver of a user's own that is no dataclass."""

    class Solver:
        def __init__(self, step):
            self.step, self._seen = step, object()

    assert fingerprint(Solver(0.1)) == fingerprint(Solver(0.1)) != fingerprint(Solver(0.2))


def test_code_has_its_own(tmp_path, monkeypatch):
    """Any file of the package counts, and the version of what it is built on."""

    def of(text, name="b.py", torch_is="2"):
        file = tmp_path / "package" / "evaluation" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        monkeypatch.setattr(module, "__file__", str(file))
        monkeypatch.setattr(module, "version", lambda of: torch_is if of == "torch" else "1")
        found = code.__wrapped__()
        file.unlink()
        return found

    assert of("x = 1") == of("x = 1") and len(of("x = 1")) == 12
    others = [of("x = 1"), of("x = 2"), of("x = 1", name="c.py"), of("x = 1", torch_is="3")]
    assert len(set(others)) == 4
