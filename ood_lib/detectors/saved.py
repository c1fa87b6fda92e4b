"""A detector is one file: `Detector.save` writes it, `load` makes the detector again, without pickle."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ood_lib.data.images import ImageFormat
from ood_lib.detectors.description import rebuild
from ood_lib.detectors.detector import HEADER, Detector
from ood_lib.features.identity import network_hash

__all__ = ["MadeFor", "load", "made_for"]


class MadeFor(NamedTuple):
    """What a detector's features are extracted with."""

    hash: str  # `network_hash` of the network, for images of the frame
    frame: ImageFormat
    classes: tuple[str, ...]  # names of the outputs; none = not said

    def check(self, network: Any) -> None:
        """Refuse a network that the detector was not fitted with.

        Raises:
            ValueError: its architecture, weights or standardisation differ.
        """
        if network_hash(network, (self.frame.channels, self.frame.size, self.frame.size)) != self.hash:
            raise ValueError(
                "the detector was fitted with another network: architecture, weights, mean or standard deviation "
                "differ, and its scores and threshold would mean nothing; give the one it was fitted with, or fit, "
                "calibrate and save it again"
            )


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Detector:
    """The detector that `Detector.save` wrote, with what it learnt, its threshold and its calibration scores.

    Its class need not be named: the file does.  Only classes that `ood_lib` itself exports are made again.  Scores are
    those of the detector that was saved, to the bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no detector, or one that this version of the library does not know.

    Example:
        >>> import tempfile
        >>> from ood_lib import KNN, Features
        >>> z = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> knn = KNN(k=5).fit(Features(penultimate=z)).calibrate(Features(penultimate=z + 0.1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     knn.save(f"{folder}/detector.safetensors")
        ...     again = load(f"{folder}/detector.safetensors")
        >>> again, torch.equal(again.is_ood(Features(penultimate=z)), knn.is_ood(Features(penultimate=z)))
        (KNN(k=5, normalize=True), True)
    """
    about, state = _read(Path(path))
    made = about["detector"]
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        try:
            detector = rebuild(made)
            if not isinstance(detector, Detector):
                raise ValueError(f"{type(detector).__name__} is no detector")
            detector.load_state_dict(state)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}, saved by ood_lib {about.get('version')}: {error}") from error
    return detector.to(device)


def made_for(path: str | os.PathLike[str]) -> MadeFor | None:
    """The network of a saved detector; None where `Detector.save` was not given one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no detector.
    """
    about, _ = _read(Path(path), tensors=False)
    if (said := about.get("network")) is None:
        return None
    return MadeFor(said["hash"], ImageFormat(**said["frame"]), tuple(said["classes"]))


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, "pt", device="cpu") as file:
            about = json.loads((file.metadata() or {})[HEADER])
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}
        about["detector"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no detector ({error}); expected what detector.save() has written") from error
    return about, state
