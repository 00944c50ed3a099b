"""What `simpletuner check` says of validation pictures: sizes, preview decoder and CLIP that training would refuse.

Reads small files and, where one is chosen, the tiny decoder; no other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from simpletuner.config.read import RunConfig
from simpletuner.errors import ConfigError, ModelError, UnreachableError
from simpletuner.evaluation.clip_score import read_small_files
from simpletuner.models.base import Facts, Family, LoadSource
from simpletuner.training import translate


@dataclass(slots=True)
class Drawing:
    """What was found out.

    Attributes:
        lines: Sentences.
        problems: Why training would refuse.
        unknown: What could not be asked for, so that nobody can tell; empty if nothing.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown: str = ""


def look(config: RunConfig, family: Family, source: LoadSource, facts: Facts | None) -> Drawing:
    """Ask for all that validation needs, as training does at its start.

    Args:
        config: The configuration.
        family: Knows the model.
        source: Where it lies.
        facts: Of the model; None where it cannot be asked, so that only the CLIP is looked at.
    """
    found = Drawing()
    for name, ask in _needs(config, family, source, facts):
        try:
            ask()
        except UnreachableError as error:
            found.unknown = found.unknown or name
            found.lines.append(f"{name[0].upper()}{name[1:]} cannot be looked at: {error}")
        except ConfigError as error:
            found.problems += map(str, error.problems)
        except ModelError as error:
            found.problems.append(str(error))
    return found


def _needs(
    config: RunConfig, family: Family, source: LoadSource, facts: Facts | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name of each thing, and a function that raises what training would."""
    options, previews = config.options, config.options.previews
    if facts is not None:
        yield "validation_resolution", lambda: translate.check_validation_sizes(config, facts)
    if options.validation.validation_disable or not config.prompts:
        return
    if previews.validation_preview and facts is not None:
        chosen = previews.validation_preview_decoder or ""
        yield "the preview decoder", lambda: family.preview_decoder(source, chosen)
    if previews.evaluation_type == "clip":
        yield "the CLIP", lambda: read_small_files(previews.pretrained_evaluation_model_name_or_path)
