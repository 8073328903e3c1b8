"""Where a profile's files lie."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The folders of the profile ``name``, below the current one."""

    name: str

    @property
    def runs(self) -> Path:
        return Path("runs") / self.name

    @property
    def data(self) -> Path:
        return Path("data") / self.name

    @property
    def work(self) -> Path:
        """Where trainings are resumed from."""
        return Path("runs/work") / self.name

    def dataset(self, key: str) -> Path:
        return self.data / f"{key}.npz"

    def model(self, run: str) -> Path:
        """The network of a run, trained from scratch or from another's on."""
        own = self.runs / "models" / run / "model.pt"
        return own if own.is_file() else self.runs / "tuned" / run / "model.pt"

    def starts(self, run: str) -> Path | None:
        """The amortized starts that a run's network has, fitted or trained with it; None where it has none."""
        for place in ("starts", "tuned"):
            if (path := self.runs / place / run / "starts.pt").is_file():
                return path
        return None

    def record(self, stage: str, key: str) -> Path:
        """What a task of a stage keeps apart from its result."""
        return self.runs / "timings" / stage / f"{key}.npz"
