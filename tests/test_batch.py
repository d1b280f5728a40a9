"""Converting many published files in one go."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import weights
from converters.batch import TABLE, convert_all, file_name
from movinet_port.checkpoint import load_checkpoint

SHARED = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
DATA = Path(__file__).parent / "data"

needs_a0 = pytest.mark.skipif(
    not (SHARED / "era1_a0_base.tar.gz").exists(), reason="needs ../shared/fixtures"
)

# Published files, and the export of the same era and network that stands in for each.
ENTRIES = {
    "a0/base/kinetics-600/classification/1": "era1_a0_base.tar.gz",
    "a0/stream/kinetics-600/classification/2": "era1_a0_stream.tar.gz",
    "a0/stream/kinetics-600/classification/3": "era2_a0_stream.tar.gz",
}


def address(entry: weights.Published) -> str:
    return next(str(SHARED / file) for end, file in ENTRIES.items() if entry.url.endswith(end))


def entries() -> list[weights.Published]:
    found = [weights.find_handle(f"https://tfhub.dev/tensorflow/movinet/{end}") for end in ENTRIES]
    return [entry for entry in found if entry is not None]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_published_file_gets_a_name_of_its_own() -> None:
    names = [file_name(e, "pt") for e in weights.catalogue()]
    assert len(names) == len(set(names)) > 40


@needs_a0
def test_run_that_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = next(iter(convert_all(entries(), out, verify=False, address=address)))
    assert (first.status, first.classes) == ("converted", 10)
    written = (out / first.file).stat().st_mtime_ns
    everything = list(convert_all(entries(), out, verify=False, address=address))
    assert [outcome.status for outcome in everything] == ["kept", "converted", "converted"]
    assert (out / first.file).stat().st_mtime_ns == written
    assert [row["status"] for row in rows(out)] == ["kept", "converted", "converted"]
    assert load_checkpoint(out / everything[1].file).spec.causal_padding == "legacy"
    assert load_checkpoint(out / everything[2].file).spec.gate == "hard_sigmoid_keras"


@needs_a0
@pytest.mark.parametrize("damage", ["cut", "weight", "other source"])
def test_checkpoint_that_is_not_whole_is_converted_again(tmp_path: Path, damage: str) -> None:
    import dataclasses

    from movinet_port import save

    entry = entries()[:1]
    (first,) = convert_all(entry, tmp_path, verify=False, address=address)
    path = tmp_path / first.file
    whole = load_checkpoint(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "weight":
        state_dict = dict(whole.state_dict)
        state_dict["stem.conv.weight"] = state_dict["stem.conv.weight"] + 1e-6
        save(dataclasses.replace(whole, state_dict=state_dict), path)
    else:
        provenance = {**whole.provenance, "published": "https://example.invalid/other"}
        save(dataclasses.replace(whole, provenance=provenance), path)
    (second,) = convert_all(entry, tmp_path, verify=False, address=address)
    assert second.status == "converted"
    again = load_checkpoint(path)
    assert again.provenance["weights_sha256"] == whole.provenance["weights_sha256"]


@needs_a0
def test_file_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    def broken(entry: weights.Published) -> str:
        return str(tmp_path / "absent.tar.gz") if entry.version == 1 else address(entry)

    outcomes = list(convert_all(entries()[:2], tmp_path, verify=False, address=broken))
    assert [bool(outcome) for outcome in outcomes] == [False, True]
    assert "absent.tar.gz" in outcomes[0].error
    assert [row["status"] for row in rows(tmp_path)] == ["failed", "converted"]
    assert not (tmp_path / outcomes[0].file).exists()


def test_published_name_must_be_the_files(tmp_path: Path) -> None:
    entry = [e for e in weights.catalogue() if e.container == "saved_model"][:1]
    (outcome,) = convert_all(
        entry, tmp_path, verify=False, address=lambda e: str(DATA / "era1_mini_base.tar.gz")
    )
    assert outcome.status == "failed"
    assert "expected a0" in outcome.error
