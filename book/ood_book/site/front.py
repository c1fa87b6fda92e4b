"""What the first page shows: photographs with the class that a network names and the detector's decision; a table.

Nothing here is drawn by hand. The strip is computed when the pages are built, by the network and the bank that ship
with the library. The table is read from the result files of the book. The same strip as one picture, for the README
and for links to the site:

    python -m ood_book.site.front book/front/strip.jpg
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import ood_lib as ood
from ood_book.metadata import read_yaml
from ood_book.notebooks import Refused
from ood_book.site.tables import table
from ood_lib.data.images import ImageFormat
from ood_lib.training.recipes import card

__all__ = ["PICTURES", "Picture", "Decision", "bibtex", "draw", "headline", "judge", "strip", "told"]

NETWORK, SIDE = "cifar10-resnet9", 32  # pixels of its images
RESULTS = {"cifar10-resnet9": "our ResNet", "cifar10-resnet56": "a published ResNet-56"}  # files, and what they are of
REFUSED, ACCEPTED = "#D55E00", "#0072B2"  # as in custom.css
METHODS = ("MSP", "Energy", "KNN", "ViM", "WeiPer+KLD, tuned", "HEAT", "feature flow")


@dataclass(frozen=True)
class Picture:
    """One photograph, `<name>.jpg` in book/front.

    Args:
        name: what it shows.
        known: it shows a class of CIFAR-10, and is in-distribution.
        source: whose it is, and on what terms it may be shared.
    """

    name: str
    known: bool
    source: str


#: Chosen by hand so that all three outcomes are seen: OOD and refused, OOD and missed, ID and accepted.
PICTURES = (
    Picture("coins", False, "Brooklyn Museum, no known restrictions"),
    Picture("coffee", False, "Rachel Michetti, CC0"),
    Picture("bricks", False, "CC0Textures, CC0"),
    Picture("galaxies", False, "NASA, public domain"),
    Picture("temple", False, "danielbuechele, CC BY 2.0"),
    Picture("cat", True, "Stéfan van der Walt, CC0"),
)


@dataclass(frozen=True)
class Decision:
    """What network and detector make of a picture; `confidence` is the largest softmax probability."""

    picture: Picture
    answer: str
    confidence: float
    refused: bool

    @property
    def missed(self) -> bool:
        """An OOD picture that the detector accepts."""
        return not self.picture.known and not self.refused

    @property
    def decision(self) -> str:
        """The detector's word, and whether it is a mistake."""
        if self.refused:
            return "refused, by mistake" if self.picture.known else "refused"
        return "accepted, a miss" if self.missed else "accepted"


def judge(folder: Path, pictures: Sequence[Picture] = PICTURES) -> list[Decision]:
    """Each picture as the shipped network and ViM see it; the threshold accepts 95 % of held-out CIFAR-10 images."""
    network, bank = ood.pretrained(NETWORK), ood.load_bank(NETWORK)
    detector = ood.ViM(network.head).fit(bank.train).calibrate(bank.val, tpr=0.95)
    files = ood.ImageFiles(folder, [f"{p.name}.jpg" for p in pictures], frame=ImageFormat(3, SIDE))
    features = ood.extract(network, files, device="cpu", progress=False)
    classes, best = card(NETWORK)["classes"], features.logits.softmax(1).max(1)
    decisions = zip(pictures, best.indices.tolist(), best.values.tolist(), detector.is_ood(features).tolist())
    return [Decision(p, classes[k], share, refused) for p, k, share, refused in decisions]


def told(decisions: Sequence[Decision]) -> str:
    """The decisions in words.

    Example:
        >>> coins = Picture("coins", False, "")
        >>> told([Decision(coins, "deer", 0.96, True)])
        'The detector refuses 1 of the 1 pictures that show none of the ten classes.'
    """
    unknown = [v for v in decisions if not v.picture.known]
    missed = [v.picture.name for v in unknown if v.missed]
    found = f"{len(unknown) - len(missed)} of the {len(unknown)} pictures that show none of the ten classes"
    text = f"The detector refuses {found}" + (f" and misses the {' and the '.join(missed)}." if missed else ".")
    for v in decisions:
        if v.picture.known:
            does, right = "refuses" if v.refused else "accepts", "rightly" if v.answer == v.picture.name else "wrongly"
            text += f" It {does} the {v.picture.name}, which the network {right} calls a {v.answer}."
    return text


def strip(decisions: Sequence[Decision]) -> str:
    """The pictures as a list that wraps on a narrow screen, and a caption; Markdown with HTML in it."""
    items = "\n".join(
        f'<li class="{"refused" if v.refused else "accepted"}">'
        f'<img src="../_static/front/{v.picture.name}.jpg" alt="Photograph: {v.picture.name}" width="160" height="160">'
        f"<span>network: <b>{escape(v.answer)}</b>, {_percent(v.confidence)}</span>"
        f"<span>detector: <b>{v.decision}</b></span></li>"
        for v in decisions
    )
    credits = "; ".join(f"{v.picture.name}: {v.picture.source}" for v in decisions)
    return (
        f'```{{raw}} html\n<ul class="strip">\n{items}\n</ul>\n```\n\n{told(decisions)}\n\n'
        f'```{{raw}} html\n<p class="credits">Photographs. {escape(credits)}.</p>\n```\n'
    )


def headline(results: Path) -> str:
    """AUROC of a few detectors on CIFAR-10 for each of two networks, and which leads: a Markdown table, a sentence."""
    tables = {name: ood.load_results(results / f"{file}.json") for file, name in RESULTS.items()}
    means = {(name, group): _means(one, group) for name, one in tables.items() for group in ("near", "far")}
    wide = pd.DataFrame(means).loc[list(METHODS)]
    head = [f"{name}, {group}-OOD" for name, group in wide.columns]
    rows = [[method, *(f"{100 * value:.1f}" for value in row)] for method, row in zip(wide.index, wide.to_numpy())]
    return f"{_leaders(wide)}\n\n{table(['detector', *head], rows)}"


def _means(table: pd.DataFrame, group: str) -> pd.Series:
    """The mean over the sets of a group, by detector."""
    chosen = table[(table["metric"] == "auroc") & (table["group"] == group)]
    return chosen.groupby("detector")["value"].mean()


def _leaders(wide: pd.DataFrame) -> str:
    """Which detectors have the highest value in each column, to the digit shown, in a sentence that claims no more."""
    shown = (100 * wide).round(1)
    best = {column: shown.index[shown[column] == shown[column].max()].tolist() for column in shown.columns}
    if always := set.intersection(*map(set, best.values())):
        return f"{' and '.join(sorted(always))} has the highest value in every column."
    named = "; ".join(f"{' and '.join(who)} on {group}-OOD with {name}" for (name, group), who in best.items())
    return f"No detector leads in every column. The highest values: {named}."


def bibtex(record: Path) -> str:
    """The entry of CITATION.cff for a bibliography, as a block of Markdown."""
    facts = read_yaml(record)
    if lacking := {"title", "authors", "version", "date-released", "repository-code"} - {*facts}:
        raise Refused(f"{record} does not say {', '.join(sorted(lacking))}")
    fields = {
        "title": f"{{{facts['title']}}}",
        "author": " and ".join(f"{{{author['name']}}}" for author in facts["authors"]),
        "year": f"{facts['date-released'].year}",
        "version": facts["version"],
        "url": facts["repository-code"],
    }
    lines = ",\n".join(f"  {key:7} = {{{value}}}" for key, value in fields.items())
    return f"```bibtex\n@software{{oodbook,\n{lines}\n}}\n```\n"


def draw(decisions: Sequence[Decision], folder: Path, path: Path) -> None:
    """The strip as one picture of 1200 by 630 pixels, the shape that links to a page are shown with."""
    figure, axes = plt.subplots(2, (len(decisions) + 1) // 2, figsize=(12, 6.3))
    for ax, v in zip(axes.flat, decisions):
        ax.imshow(plt.imread(folder / f"{v.picture.name}.jpg"))
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=REFUSED if v.refused else ACCEPTED, linewidth=6)
        ax.set_xlabel(f"network: {v.answer}, {_percent(v.confidence)}\ndetector: {v.decision}", fontsize=15)
    figure.tight_layout()
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 85, "comment": told(decisions)})
    plt.close(figure)


def _percent(share: float) -> str:
    """Rounded down, so that nothing short of certainty reads 100 %."""
    return f"{int(100 * share)}\N{NO-BREAK SPACE}%"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    draw(judge(target.parent), target.parent, target)
