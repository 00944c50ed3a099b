"""Scores: figures by hand, a CLIP from a folder, what is written and said, and that failing stops nothing."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import small_clip
import torch
from PIL import Image
from rich.console import Console

from simpletuner.data.types import Size
from simpletuner.errors import ModelError, UnreachableError
from simpletuner.evaluation.clip_score import ClipScorer
from simpletuner.evaluation.scores import Judge, Reference, Score, memorised, sentence, summaries
from simpletuner.reporting.metrics import MetricsFile
from simpletuner.reporting.progress import Reporter
from simpletuner.training.interrupt import GivenUp
from simpletuner.training.judging import Judging


@dataclass(frozen=True)
class Drawn:
    nickname: str
    prompt: str
    size: Size
    index: int
    path: Path


def drawn(folder: Path, nickname: str, array: np.ndarray, prompt: str = "a red house") -> Drawn:
    path = folder / f"{nickname}.png"
    Image.fromarray(array).save(path)
    return Drawn(nickname, prompt, Size(array.shape[1], array.shape[0]), 0, path)


def noise(seed: int, side: int = 48) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 255, (side // 8, side // 8, 3))
    return blocks.repeat(8, 0).repeat(8, 1).astype(np.uint8)


def reference(*arrays: np.ndarray) -> Reference | None:
    tensors = [torch.from_numpy(a).permute(2, 0, 1).float() / 127.5 - 1 for a in arrays]
    return Reference.gather(((f"{n}.png", t) for n, t in enumerate(tensors)), len(tensors))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_clip.write(tmp_path_factory.mktemp("clip"))


def test_clip_from_a_folder_is_the_cosine_of_its_own_embeds(clip_folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    scorer = ClipScorer(str(clip_folder)).on(torch.device("cpu"))
    pictures = [Image.fromarray(noise(n)) for n in range(10)]
    prompts = ["a red house" if n % 2 else "a blue fox" for n in range(10)]
    scores = scorer.score(pictures, prompts)
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(images=pictures[3], return_tensors="pt")
    with torch.no_grad():
        out = model(**tokenizer(prompts[3], return_tensors="pt"), **pixels)
    cosine = float((out.image_embeds * out.text_embeds).sum())
    assert scores[3] == pytest.approx(max(0.0, 100 * cosine), abs=1e-3)
    assert len(scores) == 10 and all(0 <= score <= 100 for score in scores) and len(set(scores)) > 2


def test_long_prompts_are_cut_and_counted(clip_folder: Path) -> None:
    scorer = ClipScorer(str(clip_folder))
    long = "a red house " * 9
    assert scorer.longest == 12 and scorer.tokens(long) == 27 and scorer.tokens("a red house") <= 12
    assert scorer.score([Image.fromarray(noise(1))], [long])


@pytest.mark.parametrize("path", ["no/such-clip-here", "{tmp}"])
def test_a_clip_that_cannot_be_loaded_is_told(tmp_path: Path, path: str) -> None:
    with pytest.raises(ModelError, match="pretrained_evaluation_model_name_or_path"):
        ClipScorer(path.format(tmp=tmp_path))


def test_a_configuration_of_another_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"of a model of type None, not 'clip'"):
        ClipScorer(str(tmp_path))


def test_an_unreachable_hub_is_one_sentence_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(
        UnreachableError, match=r"no folder 'some/clip' here \(pretrained_eval.*http://127.0.0.1:9 cannot be re"
    ):
        ClipScorer("some/clip")
    assert time.monotonic() - began < 5 and not caplog.records


def test_a_picture_like_the_training_pictures_scores_so(tmp_path: Path) -> None:
    judge = Judge(lambda: reference(noise(1), noise(2)))
    copy, other = drawn(tmp_path, "copy", noise(1)), drawn(tmp_path, "other", noise(3) // 4)
    scores = {(score.nickname, score.name): score for score in judge.score([copy, other])}
    assert {name for _, name in scores} == {"palette", "colour_distance", "nearest_distance"} and len(scores) == 6
    assert scores["copy", "nearest_distance"].value == pytest.approx(0, abs=1e-3)
    assert scores["copy", "nearest_distance"].more == {"nearest": "0.png", "memorised": True}
    assert not scores["other", "nearest_distance"].more["memorised"]
    assert scores["copy", "palette"].value > scores["other", "palette"].value
    assert scores["copy", "colour_distance"].value < 10 < scores["other", "colour_distance"].value


def test_what_gave_up_reading_is_read_the_next_time(tmp_path: Path) -> None:
    asked: list[bool] = []

    def read() -> Reference | None:
        asked.append(True)
        if len(asked) == 1:
            raise GivenUp
        return reference(noise(1))

    judge, picture = Judge(read), drawn(tmp_path, "a", noise(1))
    with pytest.raises(GivenUp):
        judge.score([picture])
    assert len(judge.score([picture])) == len(judge.score([picture])) == 3 and len(asked) == 2


def test_without_training_pictures_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert Judge(lambda: reference()).score([drawn(tmp_path, "a", noise(1))]) == []


def test_summaries_by_hand() -> None:
    scores = [Score("clip", value, f"{value}", 0, Size(8, 8)) for value in (10.0, 20.0, 30.0)]
    assert summaries(scores) == {"clip": {"value": 20, "min": 10, "max": 30, "std": 8.165, "pictures": 3}}
    assert "CLIP 20.0 of 100 (10.0 to 30.0)" in sentence(scores, None) and memorised(scores) == ""
    assert summaries([]) == {} and summaries([Score("clip", float("nan"), "", 0, Size(1, 1))]) == {}


def judging(folder: Path, judge: Judge) -> tuple[Judging, StringIO]:
    said = StringIO()
    return Judging(judge, MetricsFile(folder / "metrics.jsonl"), Reporter(Console(file=said, width=400))), said


def test_lines_are_written_and_one_is_said(tmp_path: Path) -> None:
    judging_, said = judging(tmp_path, Judge(lambda: reference(noise(1), noise(2))))
    judging_(7, "ema", [drawn(tmp_path, "copy", noise(1)), drawn(tmp_path, "other", noise(3))])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"score"} and {line["step"] for line in lines} == {7}
    single = [line for line in lines if line["nickname"]]
    assert len(single) == 6 and {line["label"] for line in lines} == {"ema"}
    assert {"nickname", "width", "height", "index", "name", "value"} <= set(single[0])
    (palette,) = [line for line in lines if line["nickname"] is None and line["name"] == "palette"]
    assert palette["min"] <= palette["value"] <= palette["max"] and palette["pictures"] == 2
    text = said.getvalue().splitlines()
    assert (
        "of the training pictures' palette" in text[0]
        and text[0].startswith("step 7 (ema): ")
        and "0.00 from 0.png" in text[0]
    )
    assert text[1].startswith("step 7: 1 picture is a training picture again") and len(text) == 2


def test_what_the_scores_mean_is_said_once_in_a_run(tmp_path: Path) -> None:
    judging_, said = judging(tmp_path, Judge(lambda: reference(noise(1), noise(2))))
    for step in (5, 10, 15):
        judging_(step, "", [drawn(tmp_path, "other", noise(3))])
    first, *later = [line.split(": ", 1)[1] for line in said.getvalue().splitlines()]
    for words in (" (100% is the same colours)", " (0 is the same)", " (0 is a copy, 0.4 and more another picture)"):
        assert words in first
        first = first.replace(words, "")
    assert later == [first, first]


class Failing:
    def score(self, pictures: Sequence[object], prompts: Sequence[str], between: object) -> list[float]:
        raise torch.OutOfMemoryError("no memory left")


def test_nothing_is_scored_once_the_run_is_to_stop(tmp_path: Path) -> None:
    judge, said = Judge(lambda: reference(noise(1))), StringIO()

    def go_on() -> None:
        raise GivenUp

    reporter = Reporter(Console(file=said, width=400))
    Judging(judge, MetricsFile(tmp_path / "metrics.jsonl"), reporter, go_on)(3, "", [drawn(tmp_path, "a", noise(1))])
    assert said.getvalue() == "step 3: the pictures are not scored, as the run is to stop\n"
    assert not (tmp_path / "metrics.jsonl").exists()


def test_failing_is_said_and_stops_nothing(tmp_path: Path) -> None:
    failing: ClipScorer = Failing()  # type: ignore[assignment]
    for judge, pictures in (
        (Judge(lambda: None, failing), [drawn(tmp_path, "a", noise(1))]),
        (Judge(lambda: None), [Drawn("gone", "", Size(8, 8), 0, tmp_path / "gone.png")]),
    ):
        judging_, said = judging(tmp_path, judge)
        judging_(3, "", pictures)
        assert "WARNING: step 3: the pictures could not be scored" in said.getvalue()
        assert not (tmp_path / "metrics.jsonl").exists()
