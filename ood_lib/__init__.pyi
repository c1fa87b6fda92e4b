# The public names and where they are at home: read by type checkers, and by `__init__.py`, which imports a name when it
# is first asked for.
from .data.benchmark import BENCHMARKS, Benchmark, Normalize, load_benchmark, load_ood_set
from .data.folders import split_folder
from .data.images import ImageArray, ImageFiles, ImageFormat, read_picture
from .data.labels import average_precision, count_labels
from .data.locate import MissingDataError
from .detectors.classical.ash import ASH
from .detectors.classical.energy import Energy, energy
from .detectors.classical.fdbd import FDBD
from .detectors.classical.gen import GEN, gen
from .detectors.classical.gmm import GMM
from .detectors.classical.gradnorm import GradNorm, gradnorm
from .detectors.classical.kl_matching import KLMatching
from .detectors.classical.knn import KNN
from .detectors.classical.mahalanobis import Mahalanobis
from .detectors.classical.max_logit import MaxLogit, max_logit
from .detectors.classical.msp import MSP, msp
from .detectors.classical.nnguide import NNGuide
from .detectors.classical.odin import ODIN, ODINNetwork, odin
from .detectors.classical.outlier import SklearnDetector
from .detectors.classical.react import ReAct
from .detectors.classical.recipes import classical_detectors
from .detectors.classical.rmds import RMDS
from .detectors.classical.scale import SCALE
from .detectors.classical.she import SHE
from .detectors.classical.temperature import fit_temperature
from .detectors.classical.vim import ViM
from .detectors.compose import Composed, compose
from .detectors.conformal import conformal_p_values, conformal_rank
from .detectors.detector import Detector, NotFittedError
from .detectors.flow.feature_flow import FeatureFlow
from .detectors.heat.heat import HEAT
from .detectors.heat.hybrid import ResidualEBM
from .detectors.heat.langevin import DivergedError, sgld
from .detectors.heat.priors import GMMPrior, LogitPrior
from .detectors.joint_energy import JointEnergy, SumLogit, SumProb, joint_energy, label_energies
from .detectors.msma import MSMA, ScoreNorms, score_norms, select_gmm
from .detectors.norm_bank import Scorer, load_score_norms
from .detectors.saved import MadeFor, load, made_for
from .detectors.weiper import WeiPer, weiper_kld
from .evaluation.benchmark import group_auroc, run_benchmark, summarize
from .evaluation.calibration import Reliability, reliability
from .evaluation.comparison import Comparison, compare, compare_over_seeds
from .evaluation.cost import measure_cost
from .evaluation.exportable import exportable
from .evaluation.metrics import Metrics, evaluate
from .evaluation.recommend import Recommendation, recommend
from .evaluation.results import leaderboard, load_results, load_verdicts, provenance, save_results, save_verdicts
from .evaluation.score_files import Scored, score_files
from .evaluation.verdict import SetScores, Verdict, score_verdicts, tally, verdicts
from .evaluation.watch import Watch
from .exercises import Check, seal
from .features.bank import BenchmarkFeatures, extract_benchmark, load_bank
from .features.benchmark import benchmark_features
from .features.extract import extract
from .features.features import Features
from .networks.adapt import adapt, network_for
from .networks.lipschitz import lipschitz_report
from .networks.network import pick_device
from .networks.precision import half_precision
from .networks.resnet import ResNet
from .networks.score_network import DiffusersBody, GaussianScore, ScoreNetwork, UNet, noise_scales
from .networks.spectral import spectral_normalize
from .training.augment import augmented, cutout, flip, shift
from .training.classifier import accuracy, mean_average_precision, train_classifier, train_multilabel
from .training.kept import trained
from .training.loop import History
from .training.named import load_network
from .training.recipes import pretrained
from .training.score_matching import denoising_error, dsm_loss, train_score_network
from .training.sources import NetworkCard

__all__ = [
    "ASH", "BENCHMARKS", "Benchmark", "BenchmarkFeatures", "Check", "Comparison", "Composed", "Detector",
    "DiffusersBody", "DivergedError", "Energy", "FDBD", "FeatureFlow", "Features", "GEN", "GMM", "GMMPrior",
    "GaussianScore", "GradNorm", "HEAT", "History", "ImageArray", "ImageFiles", "ImageFormat", "JointEnergy",
    "KLMatching", "KNN", "LogitPrior", "MSMA", "MSP", "MadeFor", "Mahalanobis", "MaxLogit", "Metrics",
    "MissingDataError", "NNGuide", "NetworkCard", "Normalize", "NotFittedError", "ODIN", "ODINNetwork", "RMDS",
    "ReAct", "Recommendation", "Reliability", "ResNet", "ResidualEBM", "SCALE", "SHE", "ScoreNetwork",
    "ScoreNorms", "Scored", "Scorer", "SetScores", "SklearnDetector", "SumLogit", "SumProb", "UNet", "Verdict",
    "ViM", "Watch", "WeiPer", "accuracy", "adapt", "augmented", "average_precision", "benchmark_features",
    "classical_detectors", "compare", "compare_over_seeds", "compose", "conformal_p_values", "conformal_rank",
    "count_labels", "cutout", "denoising_error", "dsm_loss", "energy", "evaluate", "exportable", "extract",
    "extract_benchmark", "fit_temperature", "flip", "gen", "gradnorm", "group_auroc", "half_precision",
    "joint_energy", "label_energies", "leaderboard", "lipschitz_report", "load", "load_bank", "load_benchmark",
    "load_network", "load_ood_set", "load_results", "load_score_norms", "load_verdicts", "made_for", "max_logit",
    "mean_average_precision", "measure_cost", "msp", "network_for", "noise_scales", "odin", "pick_device",
    "pretrained", "provenance", "read_picture", "recommend", "reliability", "run_benchmark", "save_results",
    "save_verdicts", "score_files", "score_norms", "score_verdicts", "seal", "select_gmm", "sgld", "shift",
    "spectral_normalize", "split_folder", "summarize", "tally", "train_classifier", "train_multilabel",
    "train_score_network", "trained", "verdicts", "weiper_kld",
]  # fmt: skip

__version__: str
