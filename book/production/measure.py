"""The numbers of the page "In production": python book/production/measure.py PART, written to measured.json.

PART is `service` (requests a second and waiting times), `watch` (false alarms and delay of the evidence for drift) or
`export` (how far the scores of an exported module are from those of the library).
"""

import base64
import io
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

import ood_lib as ood

HERE = Path(__file__).parent
RESULT = HERE / "measured.json"

# -- service ----------------------------------------------------------------------------------------------------------

PORT, CLIENTS, SECONDS = 8719, 4, 15.0


def service() -> dict[str, Any]:
    """Requests of one picture and of 32, by one client and by four at a time, each with one request in flight."""
    import httpx

    bench = ood.load_bank("cifar10-resnet9")
    detector = ood.KNN(k=50).fit(bench.train).calibrate(bench.val)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "detector.safetensors")
        network = ood.load_network("cifar10-resnet9")
        detector.save(file, network=network, frame=ood.ImageFormat(3, 32), classes=bench.classes)
        about = {"DETECTOR": str(file), "MODEL": "cifar10-resnet9"}
        command = [sys.executable, "-m", "uvicorn", "service:app", "--port", str(PORT), "--log-level", "warning"]
        server = subprocess.Popen(command, cwd=HERE, env=os.environ | about)
        try:
            url = f"http://127.0.0.1:{PORT}/score"
            _wait(server, url)
            loads = [(size, clients) for size in (1, 32) for clients in (1, CLIENTS)]
            rows = [_load(httpx, url, server.pid, size, clients) for size, clients in loads]
        finally:
            server.terminate()
            server.wait()
    return {
        "network": "cifar10-resnet9 (6.3 million parameters, 32 x 32 pixels)",
        "detector": f"KNN(k=50) on {len(bench.train)} features",
        "rows": rows,
    }


def _wait(server: subprocess.Popen, url: str) -> None:
    import httpx

    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError("the service did not start")
        try:
            httpx.post(url, json={"pictures": []})
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError("the service did not answer within two minutes")


def _load(httpx: Any, url: str, pid: int, size: int, clients: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    body = {"pictures": [_png(random) for _ in range(size)]}

    def client(_: int) -> list[float]:
        taken = []
        with httpx.Client() as session:
            for _ in range(3):
                session.post(url, json=body, timeout=60)
            start = last = time.perf_counter()
            while last - start < SECONDS:
                session.post(url, json=body, timeout=60).raise_for_status()
                taken.append(time.perf_counter() - last)
                last += taken[-1]
        return taken

    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    with ThreadPoolExecutor(clients) as pool:
        taken = np.concatenate([*pool.map(client, range(clients))])
    spent = (sum(process.cpu_times()[:2]) - before) / (len(taken) + 3 * clients)  # also of those before the clock
    rate = len(taken) / SECONDS
    waits = {f"p{q}_ms": round(1000 * float(np.quantile(taken, q / 100)), 1) for q in (50, 99)}
    facts = {"batch": size, "clients": clients, "requests": len(taken), "requests_per_second": round(rate, 1)}
    return facts | waits | {"processor_ms": round(1000 * spent, 1)}


def _png(random: np.random.Generator) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# -- watch ------------------------------------------------------------------------------------------------------------

CALIBRATION, PATIENCE, STREAMS, BEFORE, WINDOW = 1000, 10_000, 200, 2000, 1000

CHANGES: dict[str, tuple[float, float]] = {  # share of OOD images, and shift of the ID scores in standard deviations
    "1 % OOD images": (0.01, 0.0),
    "3 % OOD images": (0.03, 0.0),
    "10 % OOD images": (0.1, 0.0),
    "30 % OOD images": (0.3, 0.0),
    "ID scores shifted by 0.1 standard deviations": (0.0, 0.1),
    "ID scores shifted by 0.3 standard deviations": (0.0, 0.3),
    "ID scores shifted by 1 standard deviation": (0.0, 1.0),
}


def watch() -> dict[str, Any]:
    """Normal scores: how soon the evidence raises an alarm without and with a change; and what a fixed band does."""
    random = np.random.default_rng(0)
    quiet = [_first_alarm(random, 2 * PATIENCE) for _ in range(STREAMS)]
    delays = {name: _delays(random, *change) for name, change in CHANGES.items()}
    within = sum(t is not None and t <= PATIENCE for t in quiet)
    return {
        "calibration": CALIBRATION,
        "patience": PATIENCE,
        "streams": STREAMS,
        "before": BEFORE,
        "false_alarm_within_patience": _share(within, STREAMS),
        "mean_images_at_least": float(np.mean([2 * PATIENCE if t is None else t for t in quiet])),
        "delay": delays,
        "band": _band(random),
    }


def _first_alarm(random: np.random.Generator, length: int, start: int = 0, share: float = 0, shift: float = 0) -> Any:
    """The number of images to the first alarm, or None; from `start` on, the scores have changed."""
    watching = ood.Watch(random.standard_normal(CALIBRATION), patience=PATIENCE, seed=int(random.integers(2**31)))
    scores = random.standard_normal(length)
    changed = scores[start:]
    if share or shift:
        changed += np.where(random.random(len(changed)) < share, 3.0, shift)
    return next((t for t, s in enumerate(scores, 1) if watching.update([s]) >= PATIENCE), None)


def _delays(random: np.random.Generator, share: float, shift: float, streams: int = 50) -> dict[str, Any]:
    found = [_first_alarm(random, BEFORE + 8000, BEFORE, share, shift) for _ in range(streams)]
    after = [t - BEFORE for t in found if t is not None and t > BEFORE]
    whole = sorted(after + [math.inf] * sum(t is None for t in found))
    low, middle, high = (whole[int(q * (len(whole) - 1))] for q in (0.1, 0.5, 0.9))
    shown = [None if x == math.inf else x for x in (low, middle, high)]
    return {"streams": len(whole), "p10": shown[0], "median": shown[1], "p90": shown[2]}


def _band(random: np.random.Generator) -> dict[str, Any]:
    """The share of unchanged services with an alarm in 20 windows, of bands that take 5 % for the true alarm rate."""
    from scipy import stats

    alpha, runs, windows = 0.05, 4000, 20
    k = math.ceil(round((CALIBRATION + 1) * (1 - alpha), 9))
    rate = random.beta(CALIBRATION + 1 - k, k, runs)  # what one threshold refuses of new ID images
    alarms = random.binomial(WINDOW, rate[:, None], (runs, windows))
    wanted = 0.01 / windows
    naive = stats.binom.isf(wanted, WINDOW, alpha)
    aware = stats.betabinom.isf(wanted, WINDOW, CALIBRATION + 1 - k, k)
    return {
        "window": WINDOW,
        "windows": windows,
        "promised": 0.01,
        "binomial": _share(int((alarms > naive).any(1).sum()), runs),
        "beta_binomial": _share(int((alarms > aware).any(1).sum()), runs),
        "aware_limit": int(aware),
        "naive_limit": int(naive),
    }


def _share(count: int, total: int) -> dict[str, float]:
    from scipy import stats

    interval = stats.binomtest(count, total).proportion_ci(method="wilson")
    return {"share": count / total, "low": interval.low, "high": interval.high}


# -- export -----------------------------------------------------------------------------------------------------------


def detectors(head: Any, features: ood.Features) -> dict[str, Any]:
    """Those that read the penultimate feature or logits, fitted."""
    made = dict(ood.classical_detectors(head, features))
    made |= {"WeiPer, limit": ood.WeiPer(head, repeats=None), "GMM": ood.GMM(2)}
    made["FeatureFlow"] = ood.FeatureFlow(updates=30)
    made |= {"JointEnergy": ood.JointEnergy(), "compose([KNN, Energy])": ood.compose([ood.KNN(k=5), ood.Energy()])}
    return {name: detector.fit(features) for name, detector in made.items()}


def export(sizes: tuple[int, ...] = (1, 2, 7, 64)) -> dict[str, Any]:
    """For each detector the largest relative difference over several batch sizes, or why it is not exported."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    network = ood.ResNet(3, 4, widths=(8, 16)).eval()
    images = torch.rand(600, 3, 8, 8)
    with torch.no_grad():
        network.head.bias -= network(images).mean(0)  # each class is predicted then, as some detectors ask
        penultimate, logits, _ = network.represent(images)
    features = ood.Features(penultimate=penultimate, logits=logits, labels=logits.argmax(1))
    found = {}
    for name, detector in detectors(network.head, features).items():
        expected = {n: detector.score(features[:n]) for n in sizes}
        found[name] = _compared(network, detector, images, expected)
        print(name, found[name], flush=True)
    return {"sizes": sizes, "detectors": found}


def _compared(network: Any, detector: Any, images: torch.Tensor, expected: dict[int, torch.Tensor]) -> dict[str, Any]:
    made: dict[str, Any] = {"torch.export": None, "ONNX": None}
    try:
        program = exported(network, detector, images)
        whole = program.module()
        made["torch.export"] = _error(expected, images, lambda x: whole(x)[0])
        made["ONNX"] = _error(expected, images, onnx(program, images))
    except Exception as error:  # each exporter fails its own way
        made["why"] = type(error).__name__
    return made


def exported(network: Any, detector: Any, images: torch.Tensor) -> torch.export.ExportedProgram:
    """Network and detector for any number of images."""
    module = ood.exportable(network, detector)
    return torch.export.export(module, (images[:3],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def onnx(program: torch.export.ExportedProgram, images: torch.Tensor) -> Any:
    """The same in ONNX Runtime: images to scores."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/scoring.onnx"
        torch.onnx.export(program, (images[:3],), dynamo=True, verbose=False).save(file)
        session = onnxruntime.InferenceSession(file)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _error(expected: dict[int, torch.Tensor], images: torch.Tensor, run: Any) -> float:
    return max(float(((run(images[:n]) - s).abs() / (1 + s.abs())).max()) for n, s in expected.items())


def main() -> None:
    """Measure one part, and write it beside the others."""
    warnings.simplefilter("ignore")
    part = sys.argv[1]
    start, load = time.monotonic(), os.getloadavg()[0]
    found = {"service": service, "watch": watch, "export": export}[part]()
    origin = ood.provenance(f"python book/production/measure.py {part}")
    about = {**origin, "load_before": round(load, 1), "seconds": round(time.monotonic() - start)}
    whole = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    whole[part] = {**found, "origin": about}
    RESULT.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
