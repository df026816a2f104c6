"""What was asked of a GPU check, handed from process to process as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from milnce_convert.plan_settings import BuilderSettings

BUCKETS = (1, 2, 4, 8, 16, 32)
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    """One run's choices.

    Attributes:
        work: Folder for what is made on the way (bundles, plans, references); what is there already is used.
        bundles: Bundles to check; the demo and a seeded full-width one if empty.
        references: Files of outputs to compare with, beside those made on the spot.
        buckets: Batch sizes to build, check and measure.
        clips: Clips that parity is measured on.
        bucket_s: Seconds of rounds that the latency of each bucket is measured for, at most.
        least_rounds: Rounds at least.
        most_rounds: Rounds at most.
        cycles: Load and close cycles of the memory check.
        present: Parts that this host has; found out by the first part.
        tactic_sources: Names of the kernels that all builds choose from; each library's own choice if empty.
    """

    work: str
    bundles: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    buckets: tuple[int, ...] = BUCKETS
    clips: int = 32
    bucket_s: float = 6.0
    least_rounds: int = 5
    most_rounds: int = 50
    cycles: int = 50
    present: tuple[str, ...] = ()
    tactic_sources: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The work folder."""
        return Path(self.work)

    @property
    def plans(self) -> Path:
        """The folder with a folder of plans for each bundle."""
        return self.folder / "plans"

    @property
    def builder(self) -> BuilderSettings:
        """What builders are told; what was not asked for keeps its default."""
        return BuilderSettings(tactic_sources=self.tactic_sources) if self.tactic_sources else BuilderSettings()

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        tuples: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples})


@dataclass(frozen=True)
class Subject:
    """A bundle under test.

    Attributes:
        name: What the report calls it.
        path: Its folder.
        reference: The file of outputs to compare with.
    """

    name: str
    path: str
    reference: str


def write_subjects(settings: Settings, subjects: list[Subject]) -> None:
    """Hand the bundles to the parts that come after."""
    (settings.folder / "subjects.json").write_text(json.dumps([asdict(subject) for subject in subjects]), "utf-8")


def read_subjects(settings: Settings) -> list[Subject]:
    """Return the bundles under test.

    Raises:
        FileNotFoundError: if the part that prepares them has not run.
    """
    return [Subject(**values) for values in json.loads((settings.folder / "subjects.json").read_text("utf-8"))]
