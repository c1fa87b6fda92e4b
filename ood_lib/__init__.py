"""ood_lib: out-of-distribution detection, one idea per file.

A detector is an energy on a representation: a frozen network turns an image into `Features`, a `Detector` turns them
into one number per image, and larger always means further from the training data.
"""

from ood_lib.data.benchmark import BENCHMARKS, Benchmark, Normalize, load_benchmark, load_ood_set
from ood_lib.data.folders import split_folder
from ood_lib.data.images import Frame, ImageArray, ImageFiles
from ood_lib.data.labels import average_precision, count_labels
from ood_lib.data.locate import MissingDataError
from ood_lib.detectors.classical.ash import ASH
from ood_lib.detectors.classical.energy import Energy, energy
from ood_lib.detectors.classical.fdbd import FDBD
from ood_lib.detectors.classical.gen import GEN, gen
from ood_lib.detectors.classical.gmm import GMM
from ood_lib.detectors.classical.gradnorm import GradNorm, gradnorm
from ood_lib.detectors.classical.kl_matching import KLMatching
from ood_lib.detectors.classical.knn import KNN
from ood_lib.detectors.classical.mahalanobis import Mahalanobis
from ood_lib.detectors.classical.max_logit import MaxLogit, max_logit
from ood_lib.detectors.classical.msp import MSP, msp
from ood_lib.detectors.classical.nnguide import NNGuide
from ood_lib.detectors.classical.odin import ODIN, Perturbed, odin
from ood_lib.detectors.classical.outlier import Outlier
from ood_lib.detectors.classical.react import ReAct
from ood_lib.detectors.classical.recipes import classical_detectors
from ood_lib.detectors.classical.rmds import RMDS
from ood_lib.detectors.classical.scale import SCALE
from ood_lib.detectors.classical.she import SHE
from ood_lib.detectors.classical.temperature import fit_temperature
from ood_lib.detectors.classical.vim import ViM
from ood_lib.detectors.compose import compose
from ood_lib.detectors.detector import Detector, NotFittedError
from ood_lib.detectors.flow.feature_flow import FeatureFlow
from ood_lib.detectors.heat.heat import HEAT
from ood_lib.detectors.heat.hybrid import ResidualEBM
from ood_lib.detectors.heat.langevin import DivergedError, sgld
from ood_lib.detectors.heat.priors import GMMPrior, LogitPrior
from ood_lib.detectors.joint_energy import JointEnergy, SumLogit, SumProb, joint_energy, label_energies
from ood_lib.detectors.msma import MSMA, ScoreNorms, score_norms, select_gmm
from ood_lib.detectors.weiper import WeiPer, weiper_kld
from ood_lib.evaluation.benchmark import run_benchmark, summarize
from ood_lib.evaluation.comparison import Comparison, compare, duel
from ood_lib.evaluation.cost import measured
from ood_lib.evaluation.metrics import Metrics, evaluate
from ood_lib.evaluation.results import leaderboard, load_results, provenance, save_results
from ood_lib.exercises import Check, seal
from ood_lib.features.bank import BenchmarkFeatures, extract_benchmark, load_bank
from ood_lib.features.extract import extract
from ood_lib.features.features import Features
from ood_lib.networks.adapt import Recorded, adapt, network_for
from ood_lib.networks.lipschitz import lipschitz_report
from ood_lib.networks.network import pick_device
from ood_lib.networks.precision import half_precision
from ood_lib.networks.resnet import ResNet
from ood_lib.networks.score_network import DiffusersBody, ScoreNetwork, UNet, noise_scales
from ood_lib.networks.spectral import spectral_normalize
from ood_lib.training.augment import augmented, cutout, flip, shift
from ood_lib.training.classifier import accuracy, mean_average_precision, train_classifier, train_multilabel
from ood_lib.training.loop import History
from ood_lib.training.recipes import pretrained
from ood_lib.training.score_matching import denoising_error, dsm_loss, train_score_network

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
