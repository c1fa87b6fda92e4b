"""A service that decides about pictures: DETECTOR=... MODEL=... uvicorn service:app."""

import io
import os
from typing import Any

import torch
from fastapi import FastAPI, HTTPException
from fastapi.concurrency import run_in_threadpool
from pydantic import Base64Bytes, BaseModel, Field

import ood_lib as ood

detector, made = ood.load(os.environ["DETECTOR"]), ood.made_for(os.environ["DETECTOR"])
network: Any = ood.load_network(os.environ["MODEL"], weights=os.environ.get("WEIGHTS"))
made.check(network)  # these weights, and no others
app = FastAPI()


class Request(BaseModel):
    """Picture files, one or several."""

    pictures: list[Base64Bytes] = Field(min_length=1)


def decide(files: list[bytes]) -> list[dict[str, Any]]:
    """One answer for each picture."""
    images = torch.stack([ood.read_picture(io.BytesIO(file), made.frame) for file in files])
    with torch.no_grad():
        penultimate, logits, _ = network.represent(images)
    scores = detector.score(ood.Features(penultimate=penultimate, logits=logits))
    p, refused = detector.p_values_of(scores), scores > detector.threshold
    rows = zip(scores.tolist(), p.tolist(), refused.tolist(), logits.argmax(1).tolist())
    return [dict(zip(("score", "p_value", "refused", "class"), row)) for row in rows]


@app.post("/score")
async def score(request: Request) -> list[dict[str, Any]]:
    """Scores, p-values, decisions and classes; 422 for what is no picture."""
    try:
        return await run_in_threadpool(decide, request.pictures)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
