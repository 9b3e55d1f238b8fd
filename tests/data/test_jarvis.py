"""JARVIS-DFT relaxations to labelled frames, of files in its formats that are made here."""

import json
import logging
import re
import sys
import zipfile

import numpy as np
import pytest
from ase.build import bulk
from ase.db import connect

pytest.importorskip("jarvis", reason="the extra relaxnet")

from jarvis.core.atoms import ase_to_atoms

from fairchem_gdeq.data import jarvis

ENERGY = -4.0  # of an atom, eV


def relaxation(jid, frames=4, seed=0, strain=0.0):
    """Entries as those of alignn_ff_db: jarvis-tools' dictionaries of atoms, energy of an atom."""
    rng = np.random.default_rng(seed)
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    moves = rng.normal(scale=0.05, size=atoms.positions.shape)
    entries = []
    for step in range(frames):
        image = atoms.copy()
        image.positions += moves * 0.5**step
        image.set_cell(atoms.cell * (1 + strain * step), scale_atoms=True)
        entries.append(
            {
                "jid": jid,
                "atoms": ase_to_atoms(image).to_dict(),
                "total_energy": ENERGY - step,
                "forces": (-moves * 0.5**step).tolist(),
                "stresses": np.zeros((3, 3)).tolist(),
            }
        )
    return entries, moves


def frames_of(folder):
    """What was written: frames by name."""
    found = {}
    for split in jarvis.SPLITS:
        file = folder / f"{split}_frames" / "data.aselmdb"
        if file.exists():
            with connect(file, type="aselmdb") as database:
                rows = [database._get_row(i) for i in database.ids]
            found |= {row.data["sid"]: (split, row.toatoms()) for row in rows}
    return found


def test_entries_of_a_material_are_one_trajectory(tmp_path):
    known = [relaxation(f"JVASP-{i}", seed=i) for i in range(40)]
    entries = [entries[step] for step in range(4) for entries, _ in known]  # not side by side
    counts = jarvis.write(jarvis.of_entries(entries), tmp_path)
    assert sum(counts.values()) == 40 and counts["train"] >= 30 and counts["val"] and counts["test"]
    found = frames_of(tmp_path)
    assert len(found) == 160
    for i, (_, moves) in enumerate(known):
        assert len({found[f"JVASP-{i}_{step}"][0] for step in range(4)}) == 1  # one split
        for step in range(4):
            atoms = found[f"JVASP-{i}_{step}"][1]
            assert atoms.get_potential_energy() == pytest.approx(8 * (ENERGY - step))
            np.testing.assert_allclose(atoms.get_forces(), -moves * 0.5**step, atol=1e-9)
    first, last = (found[f"JVASP-0_{step}"][1].positions for step in (0, 3))
    np.testing.assert_allclose(first - last, known[0][1] * (1 - 0.125), atol=1e-6)


def test_frames_are_brought_into_the_first_cell(tmp_path, caplog):
    entries, moves = relaxation("JVASP-7", strain=0.01)
    with caplog.at_level(logging.INFO):
        jarvis.write(jarvis.of_entries(entries), tmp_path)
    assert "in 1 of 1 relaxations the cell changes" in caplog.text
    images = [frames_of(tmp_path)[f"JVASP-7_{step}"][1] for step in range(4)]
    for step, image in enumerate(images):
        np.testing.assert_allclose(image.cell, images[0].cell)
        moved = images[0].positions - image.positions
        np.testing.assert_allclose(moved, moves * (1 - 0.5**step), atol=1e-6)


def test_repeats_and_single_frames_are_left_out(tmp_path, caplog):
    entries, _ = relaxation("JVASP-1")
    single, _ = relaxation("JVASP-2", frames=1)
    other, _ = relaxation("JVASP-3")
    other[2]["atoms"]["elements"][0] = "K"
    jarvis.write(jarvis.of_entries([entries[0], *entries, *single, *other]), tmp_path)
    assert sorted(frames_of(tmp_path)) == [f"JVASP-1_{step}" for step in range(4)]
    assert "JVASP-2: one frame only" in caplog.text
    assert "JVASP-3, frame 2: it has other atoms than the first one" in caplog.text
    with pytest.raises(FileExistsError, match="train_frames is there already"):
        jarvis.write([], tmp_path)


def test_the_command_reads_what_was_fetched_and_says_what_was_not(tmp_path, monkeypatch, capsys):
    def command(*given):
        monkeypatch.setattr(sys, "argv", ["jarvis", *map(str, given)])
        jarvis.main()

    with pytest.raises(SystemExit) as said:
        command(tmp_path / "out")
    text = str(said.value)
    assert "id_prop.json.zip: no such file. It is the data set alignn_ff_db" in text
    assert re.search(r"data\('alignn_ff_db', store_dir='.*out'\)", text)
    assert "figshare.com/files/" in text and "--vasprun FOLDER" in text
    entries = [each for i in range(3) for each in relaxation(f"JVASP-{i}")[0]]
    with zipfile.ZipFile(tmp_path / "id_prop.json.zip", "w") as file:
        file.writestr("id_prop.json", json.dumps(entries))
    command(tmp_path / "out", "--store", tmp_path)
    assert "train_frames: " in capsys.readouterr().out and len(frames_of(tmp_path / "out")) == 12


def calculation(x, energy):
    """One ionic step of a vasprun.xml, of two atoms in a cube of 4 Angstrom."""
    vectors = "".join(f"<v> {row} </v>" for row in ("4 0 0", "0 4 0", "0 0 4"))
    return f"""
 <calculation>
  <structure><crystal><varray name="basis">{vectors}</varray><varray name="rec_basis">{vectors}</varray>
   </crystal>
   <varray name="positions"><v> 0 0 0 </v><v> {x} 0.5 0.5 </v></varray></structure>
  <varray name="forces"><v> {0.5 - x} 0 0 </v><v> {x - 0.5} 0 0 </v></varray>
  <varray name="stress">{vectors}</varray>
  <energy><i name="e_fr_energy"> 0 </i><i name="e_wo_entrp"> {energy} </i></energy>
 </calculation>"""


def vasprun(*steps):
    atoms = "".join(f"<rc><c>{symbol}</c><c>1</c></rc>" for symbol in ("Na", "Cl"))
    settings = "<separator><i name='SYSTEM'>x</i><i name='ISIF'>2</i></separator>"
    names = f"<parameters>{2 * settings}</parameters>"
    return (
        "<?xml version='1.0'?><modeling>"
        + names
        + f"<atominfo><atoms>2</atoms><types>2</types><array name='atoms'><set>{atoms}</set></array>"
        + "<array name='atomtypes'><set/></array></atominfo>"
        + "".join(calculation(*step) for step in steps)
        + "</modeling>"
    )


def test_vasprun_files_are_trajectories(tmp_path, caplog):
    for name in ("JVASP-5", "JVASP-6"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    text = vasprun((0.6, -7.0), (0.55, -7.5), (0.5, -8.0))
    (tmp_path / "raw/JVASP-5/vasprun.xml").write_text(text)
    (tmp_path / "raw/JVASP-6/vasprun.xml").write_text("<modeling>")
    jarvis.write(jarvis.of_vaspruns(tmp_path / "raw"), tmp_path)
    found = frames_of(tmp_path)
    assert sorted(found) == [f"JVASP-5-vasprun_{step}" for step in range(3)]
    energies = [found[name][1].get_potential_energy() for name in sorted(found)]
    assert energies == [-7.0, -7.5, -8.0]
    atoms = found["JVASP-5-vasprun_0"][1]
    assert atoms.positions[1].tolist() == pytest.approx([2.4, 2.0, 2.0])
    assert atoms.get_forces()[1].tolist() == pytest.approx([0.1, 0.0, 0.0])
    assert "JVASP-6/vasprun.xml: left out, it cannot be read" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"expected vasprun.xml files in it"):
        list(jarvis.of_vaspruns(tmp_path / "train_frames"))
