"""The whole detector: sensor arrays in, boxes out. What a program that uses an exported student calls.

`Detector.load("student.onnx").detect(images, points, calibration, score_threshold=0.3)`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import NonFiniteError, UsageError
from bevkd_deploy.contracts.graph_spec import GraphSpec
from bevkd_deploy.contracts.sidecar import load_sidecar
from bevkd_deploy.geometry.calibration import Calibration
from bevkd_deploy.runtime.detections import Detections
from bevkd_deploy.runtime.engine import Engine, Feed, Provider, open_engine
from bevkd_deploy.runtime.preprocess import Preprocessor
from bevkd_deploy.runtime.stage_timer import StageTimer

#: Steps of `Detector.detect`, in order. `tables` is a look-up for a calibration that stays and a rebuild for one that
#: changes, as it does with every frame where ego motion between the sensors is compensated.
STAGES = ("resize", "pillars", "tables", "engine")


class Detector:
    """An engine with the preprocessing it was trained with.

    Attributes:
        engine: the loaded artefact.
        preprocess: sensor arrays to graph inputs.
    """

    def __init__(self, engine: Engine, spec: GraphSpec) -> None:
        self.engine = engine
        self.preprocess = Preprocessor(spec)

    @classmethod
    def load(cls, path: Path | str, *, threads: int | None = None, provider: Provider = "cpu") -> Detector:
        """Load an exported `.onnx` or `.plan` with the sidecar beside it.

        Args:
            path: artefact; `<path>.json` must lie beside it.
            threads: CPU threads of ONNX Runtime; None leaves the choice to it.
            provider: where ONNX Runtime runs; a plan runs on its GPU.

        Raises:
            ArtifactError: the file or its sidecar is missing, damaged, or they do not belong together.
            CannotRunHere: this machine lacks the GPU, library or compute capability.
        """
        sidecar = load_sidecar(path)
        return cls(open_engine(path, sidecar, threads=threads, provider=provider), sidecar.graph)

    def detect(
        self,
        images: Sequence[NDArray[np.uint8] | None],
        points: NDArray[np.float32],
        calibration: Calibration,
        *,
        score_threshold: float = 0.0,
        timer: StageTimer | None = None,
    ) -> Detections:
        """Detect the objects of one frame.

        Args:
            images: raw RGB uint8 [H, W, 3], in the order of the graph's cameras; None for one missing in this frame.
            points: float32 [P, 5] = x, y, z (metres, lidar frame), intensity 0..255, time lag in seconds. P may be 0.
            calibration: of these images; cameras that the graph does not take are ignored.
            score_threshold: boxes below it are left out, 0..1.
            timer: told when each of `STAGES` is done.

        Returns:
            Boxes in the lidar frame, by descending score.

        Raises:
            DataError: a sensor array has the wrong shape, dtype or values.
            NonFiniteError: the engine returned NaN or infinite values.
            UsageError: the threshold is outside 0..1.
        """
        if not 0 <= score_threshold <= 1:
            raise UsageError(f"score_threshold must be in 0..1, got {score_threshold}")
        timer = timer or StageTimer()
        feed = self.preprocess(images, points, calibration, timer=timer)
        detections = self.infer(feed).above(score_threshold)
        timer.lap("engine")
        return detections

    def infer(self, feed: Feed) -> Detections:
        """Run the engine on graph inputs (what `preprocess` returns), without a threshold.

        Raises:
            NonFiniteError: the engine returned NaN or infinite values.
        """
        outputs = self.engine.run(feed)
        for name in ("boxes", "scores"):
            bad = int(np.count_nonzero(~np.isfinite(outputs[name])))
            if bad:
                raise NonFiniteError(
                    f"{self.engine.name} {self.engine.precision} returned {bad} NaN or infinite values of "
                    f"{outputs[name].size} in '{name}'. If the fp32 artefact does not, export with the nodes that "
                    "overflow in export.keep_fp32"
                )
        return Detections(outputs["boxes"], outputs["scores"], outputs["labels"], self.preprocess.spec.classes)

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
