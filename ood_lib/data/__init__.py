"""Which images play which role."""

__all__ = ["NAMES"]

#: The benchmarks of `ood_lib.data.benchmark.BENCHMARKS`: who only asks for the names imports no torch.
NAMES = ("digits", "scenes", "cifar10", "cifar100", "imagenet", "voc", "coco")
