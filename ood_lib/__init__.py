"""ood_lib: out-of-distribution detection, one idea per file.

A detector is an energy on a representation: a frozen network turns an image into `Features`, a `Detector` turns them
into one number per image, and larger always means further from the training data.
"""

from ood_lib.benchmark import BenchmarkFeatures, extract_benchmark, run_benchmark, summarize
from ood_lib.data import BENCHMARKS, Benchmark, load_benchmark, load_ood_set
from ood_lib.density import GMM
from ood_lib.detector import Detector, NotFittedError
from ood_lib.distances import FDBD, KNN, SHE, NNGuide
from ood_lib.features import Features, extract
from ood_lib.gaussians import RMDS, Mahalanobis, ViM
from ood_lib.gradients import ODIN, GradNorm, Perturbed, gradnorm, odin
from ood_lib.logits import GEN, MSP, Energy, KLMatching, MaxLogit, energy, fit_temperature, gen, max_logit, msp
from ood_lib.metrics import Metrics, evaluate
from ood_lib.msma import MSMA, ScoreNorms, score_norms, select_gmm
from ood_lib.networks import ResNet, adapt, pick_device
from ood_lib.rectify import ASH, SCALE, ReAct
from ood_lib.score_matching import denoising_error, dsm_loss, train_score_network
from ood_lib.score_network import DiffusersBody, ScoreNetwork, UNet, noise_scales
from ood_lib.sources import MissingDataError
from ood_lib.training import History, accuracy, shift, train_classifier
from ood_lib.weiper import WeiPer, weiper_kld

__all__ = [
    "ASH", "BENCHMARKS", "Benchmark", "BenchmarkFeatures", "Detector", "DiffusersBody", "Energy", "FDBD",
    "Features", "GEN", "GMM", "GradNorm", "History", "KLMatching", "KNN", "MSMA", "MSP", "Mahalanobis", "MaxLogit",
    "Metrics", "MissingDataError", "NNGuide", "NotFittedError", "ODIN", "Perturbed", "RMDS", "ReAct", "ResNet",
    "SCALE", "SHE", "ScoreNetwork", "ScoreNorms", "UNet", "ViM", "WeiPer", "accuracy", "adapt", "denoising_error",
    "dsm_loss", "energy", "evaluate", "extract", "extract_benchmark", "fit_temperature", "gen", "gradnorm",
    "load_benchmark", "load_ood_set", "max_logit", "msp", "noise_scales", "odin", "pick_device", "run_benchmark",
    "score_norms", "select_gmm", "shift", "summarize", "train_classifier", "train_score_network", "weiper_kld",
]  # fmt: skip

__version__ = "0.1.0"
