"""Evidence that the scores of a service have changed since calibration."""

import csv

import ood_lib as ood

detector = ood.load("detector.safetensors")
watch = ood.Watch(detector.calibration, alpha=0.05, patience=100_000)

with open("scores.csv", newline="", encoding="utf-8") as file:
    scores = [float(row["score"]) for row in csv.DictReader(file) if row["score"]]
evidence = watch.update(scores)  # call it with new scores as they come
if evidence >= watch.patience:
    print(f"the images have changed since calibration: {evidence:.3g}")
