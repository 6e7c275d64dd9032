"""The folder of an export: whole or not there, replaced only by the same export, and nothing else is ever touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clearing.exports.folder import written
from clearing.exports.pseudonyms import Pseudonyms, key_of
from fare_engine.errors import InputError


def export(target: Path, content: str = "a", kind: str = "tides", period: str = "2026-03-02") -> None:
    with written(target, kind, period) as folder:
        (folder / "a.csv").write_text(content)


def test_an_export_stands_in_its_folder_with_the_hashes_of_its_files(tmp_path: Path) -> None:
    export(tmp_path / "deep" / "out")
    found = json.loads((tmp_path / "deep" / "out" / "export.json").read_bytes())
    assert (found["export"], found["period"]) == ("tides", "2026-03-02")
    assert [(file["name"], file["bytes"]) for file in found["files"]] == [("a.csv", 1)]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_the_same_export_takes_the_place_of_the_one_before_and_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(tmp_path / "out", "a")
    export(tmp_path / "out", "b")
    assert (tmp_path / "out" / "a.csv").read_text() == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("other", [{"kind": "parquet"}, {"period": "2026-03-03"}])
def test_another_export_is_left_alone(tmp_path: Path, other: dict[str, str]) -> None:
    export(tmp_path / "out")
    with pytest.raises(InputError, match="holds another export"):
        export(tmp_path / "out", "b", **other)
    assert (tmp_path / "out" / "a.csv").read_text() == "a"


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not an export"):
        export(tmp_path / "home")
    export(tmp_path / "out")
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not of the export in this folder"):
        export(tmp_path / "out")
    with pytest.raises(InputError, match="is no folder"):
        export(tmp_path / "home" / "letter.txt")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    export(tmp_path / "out")
    with pytest.raises(TypeError):
        export(tmp_path / "out", 7)  # type: ignore[arg-type]
    assert (tmp_path / "out" / "a.csv").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_pseudonyms_are_the_same_under_one_key_and_tell_nothing_under_another(tmp_path: Path) -> None:
    one, other = Pseudonyms(key_of(tmp_path, "tides", "a", None)), Pseudonyms(key_of(tmp_path, "tides", "b", None))
    assert one.of("token", "x") == Pseudonyms(key_of(tmp_path, "tides", "a", None)).of("token", "x")
    assert len({one.of("token", "x"), other.of("token", "x"), one.of("traveller", "x")}) == 3


def test_a_key_that_is_too_short_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(InputError, match="at least 16 bytes"):
        key_of(tmp_path, "tides", "a", tmp_path / "key")
    with pytest.raises(InputError, match="cannot be read"):
        key_of(tmp_path, "tides", "a", tmp_path / "none")
