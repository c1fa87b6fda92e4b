"""ood_lib: out-of-distribution detection, one idea per file.

A detector is an energy on a representation: a frozen network turns an image into `Features`, a `Detector` turns them
into one number per image, and larger always means further from the training data.
"""

from ood_lib.augment import augmented, cutout, flip, shift
from ood_lib.benchmark import BenchmarkFeatures, extract_benchmark, run_benchmark, summarize
from ood_lib.classical import classical_detectors
from ood_lib.comparison import Comparison, compare, duel
from ood_lib.compose import compose
from ood_lib.cost import measured
from ood_lib.data import BENCHMARKS, Benchmark, Normalize, load_benchmark, load_ood_set
from ood_lib.density import GMM
from ood_lib.detector import Detector, NotFittedError
from ood_lib.distances import FDBD, SHE
from ood_lib.exercises import Check, seal
from ood_lib.feature_flow import FeatureFlow
from ood_lib.features import Features, extract
from ood_lib.folders import split_folder
from ood_lib.gaussians import RMDS, Mahalanobis, ViM
from ood_lib.gradients import ODIN, GradNorm, Perturbed, gradnorm, odin
from ood_lib.heat import HEAT
from ood_lib.hybrid import ResidualEBM
from ood_lib.images import Frame, ImageArray, ImageFiles
from ood_lib.labels import average_precision, count_labels
from ood_lib.langevin import DivergedError, sgld
from ood_lib.lipschitz import lipschitz_report
from ood_lib.logits import GEN, MSP, Energy, KLMatching, MaxLogit, energy, fit_temperature, gen, max_logit, msp
from ood_lib.loop import History
from ood_lib.metrics import Metrics, evaluate
from ood_lib.msma import MSMA, ScoreNorms, score_norms, select_gmm
from ood_lib.multilabel import JointEnergy, SumLogit, SumProb, joint_energy, label_energies
from ood_lib.neighbours import KNN, NNGuide
from ood_lib.networks import Recorded, ResNet, adapt, half_precision, network_for, pick_device
from ood_lib.outliers import Outlier
from ood_lib.pretrained import load_bank, pretrained
from ood_lib.priors import GMMPrior, LogitPrior
from ood_lib.rectify import ASH, SCALE, ReAct
from ood_lib.results import leaderboard, load_results, provenance, save_results
from ood_lib.score_matching import denoising_error, dsm_loss, train_score_network
from ood_lib.score_network import DiffusersBody, ScoreNetwork, UNet, noise_scales
from ood_lib.sources import MissingDataError
from ood_lib.spectral import spectral_normalize
from ood_lib.training import accuracy, mean_average_precision, train_classifier, train_multilabel
from ood_lib.weiper import WeiPer, weiper_kld

__all__ = [
    "ASH", "BENCHMARKS", "Benchmark", "BenchmarkFeatures", "Check", "Comparison", "Detector", "DiffusersBody",
    "DivergedError", "Energy", "FDBD", "FeatureFlow", "Features", "Frame", "GEN", "GMM", "GMMPrior", "GradNorm",
    "HEAT", "History", "ImageArray", "ImageFiles", "JointEnergy", "KLMatching", "KNN", "LogitPrior", "MSMA", "MSP",
    "Mahalanobis", "MaxLogit", "Metrics", "MissingDataError", "NNGuide", "Normalize", "NotFittedError", "ODIN",
    "Outlier", "Perturbed", "RMDS", "ReAct", "Recorded", "ResNet", "ResidualEBM", "SCALE", "SHE", "ScoreNetwork",
    "ScoreNorms", "SumLogit", "SumProb", "UNet", "ViM", "WeiPer", "accuracy", "adapt", "augmented",
    "average_precision", "classical_detectors", "compare", "compose", "count_labels", "cutout", "denoising_error",
    "dsm_loss", "duel", "energy", "evaluate", "extract", "extract_benchmark", "fit_temperature", "flip", "gen",
    "gradnorm", "half_precision", "joint_energy", "label_energies", "leaderboard", "lipschitz_report", "load_bank",
    "load_benchmark", "load_ood_set", "load_results", "max_logit", "mean_average_precision", "measured", "msp",
    "network_for", "noise_scales", "odin", "pick_device", "pretrained", "provenance", "run_benchmark", "save_results",
    "score_norms", "seal", "select_gmm", "sgld", "shift", "spectral_normalize", "split_folder", "summarize",
    "train_classifier", "train_multilabel", "train_score_network", "weiper_kld",
]  # fmt: skip

__version__ = "0.1.0"
