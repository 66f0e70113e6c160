"""docs/metrics.md says what each key of metrics.json holds, and its example submission is one that can be made."""

import json
import re
from collections.abc import Iterator
from typing import Any

from detection3d.evaluation import evaluate
from detection3d.evaluation.analysis import analyse
from detection3d.evaluation.files.metrics_json import SCHEMA_VERSION, metrics_to_json
from detection3d.evaluation.files.submission import read_information
from tests.conftest import ROOT
from tests.evaluation.builders import box, found, truth

DOCUMENT = (ROOT / "docs/metrics.md").read_text()


def keys_of(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        named = {"breakdowns": "NAME", "means": "LEVEL"}.get(path[-1] if path else "", key)
        yield (*path, named)
        yield from keys_of(value, (*path, named))


def test_every_key_is_documented():
    frames = [found([box()])], [truth([box()])]
    metrics = evaluate(*frames)
    content = json.loads(metrics_to_json(metrics, {}))
    assert f"`schema_version` is {SCHEMA_VERSION}." in DOCUMENT
    section = DOCUMENT.split("## metrics.json")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = {part for row in rows for key in re.findall(r"`(.*?)`", row) for part in key.split(".") if part}
    for path in set(keys_of(content)):
        if path[-1] not in ("NAME", "LEVEL"):
            assert path[-1] in named, path
    assert set(analyse(*frames, metrics).to_json()) <= named


def test_the_example_of_a_submission_can_be_submitted(tmp_path):
    example = next(
        block for block in re.findall(r"```\n(.*?)```", DOCUMENT, re.DOTALL) if "unique_method_name" in block
    )
    (tmp_path / "me.txtpb").write_text(example)
    assert len(read_information(tmp_path / "me.txtpb").object_types) == 3
