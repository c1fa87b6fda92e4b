"""ood_lib: out-of-distribution detection, one idea per file.

A detector is an energy on a representation: a frozen network turns an image into `Features`, a `Detector` turns them
into one number per image, and larger always means further from the training data.
"""

from ood_lib.benchmark import BenchmarkFeatures, extract_benchmark, run_benchmark, summarize
from ood_lib.classical import classical_detectors
from ood_lib.comparison import Comparison, compare
from ood_lib.compose import compose
from ood_lib.cost import measured
from ood_lib.data import BENCHMARKS, Benchmark, Normalize, load_benchmark, load_ood_set
from ood_lib.density import GMM
from ood_lib.detector import Detector, NotFittedError
from ood_lib.distances import FDBD, SHE
from ood_lib.features import Features, extract
from ood_lib.gaussians import RMDS, Mahalanobis, ViM
from ood_lib.gradients import ODIN, GradNorm, Perturbed, gradnorm, odin
from ood_lib.heat import HEAT, ResidualEBM
from ood_lib.images import Frame, ImageArray, ImageFiles
from ood_lib.langevin import DivergedError, sgld
from ood_lib.logits import GEN, MSP, Energy, KLMatching, MaxLogit, energy, fit_temperature, gen, max_logit, msp
from ood_lib.metrics import Metrics, evaluate
from ood_lib.neighbours import KNN, NNGuide
from ood_lib.networks import ResNet, adapt, pick_device
from ood_lib.priors import GMMPrior, LogitPrior
from ood_lib.rectify import ASH, SCALE, ReAct
from ood_lib.results import leaderboard, load_results, provenance, save_results
from ood_lib.sources import MissingDataError
from ood_lib.training import History, accuracy, shift, train_classifier
from ood_lib.weiper import WeiPer, weiper_kld

__all__ = [
    "ASH", "BENCHMARKS", "Benchmark", "BenchmarkFeatures", "Comparison", "Detector", "DivergedError", "Energy",
    "FDBD", "Features", "Frame", "GEN", "GMM", "GMMPrior", "GradNorm", "HEAT", "History", "ImageArray",
    "ImageFiles", "KLMatching", "KNN", "LogitPrior", "MSP", "Mahalanobis", "MaxLogit", "Metrics",
    "MissingDataError", "NNGuide", "Normalize", "NotFittedError", "ODIN", "Perturbed", "RMDS", "ReAct", "ResNet",
    "ResidualEBM", "SCALE", "SHE", "ViM", "WeiPer", "accuracy", "adapt", "classical_detectors", "compare",
    "compose", "energy", "evaluate", "extract", "extract_benchmark", "fit_temperature", "gen", "gradnorm",
    "leaderboard", "load_benchmark", "load_ood_set", "load_results", "max_logit", "measured", "msp", "odin",
    "pick_device", "provenance", "run_benchmark", "save_results", "sgld", "shift", "summarize", "train_classifier",
    "weiper_kld",
]  # fmt: skip

__version__ = "0.1.0"
