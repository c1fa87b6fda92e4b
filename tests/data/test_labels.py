"""Laws of label matrices: what is counted is what is there, and what is no label matrix is named."""

import pytest
import torch
from sklearn.metrics import average_precision_score

from ood_lib import average_precision, count_labels
from ood_lib.data.labels import label_matrix, present
from tests.conftest import normal, seeded

LABELS = (torch.rand(40, 5, generator=seeded()) < 0.3).long()


def test_present_labels_rebuild_the_matrix():
    rows, classes = present(LABELS)
    again = torch.zeros_like(LABELS)
    again[rows, classes] = 1
    assert torch.equal(again, LABELS) and len(rows) == LABELS.sum()


def test_the_counts_are_those_of_a_loop():
    counts = count_labels(LABELS)
    rows = LABELS.tolist()
    assert counts.images == len(rows) and counts.unlabelled == sum(not any(row) for row in rows) > 0
    assert counts.per_class == tuple(sum(row[c] for row in rows) for c in range(5))
    assert counts.cardinality == pytest.approx(sum(map(sum, rows)) / len(rows))
    assert counts.absent == []


def test_a_class_that_is_never_present_is_named():
    labels = LABELS.clone()
    labels[:, 3] = 0
    assert count_labels(labels).absent == [3]
    assert "never present: classes [3]" in str(count_labels(labels))


def test_no_image_at_all_is_counted_too():
    assert count_labels(torch.zeros(0, 3)).per_class == (0, 0, 0)


def test_average_precision_is_that_of_sklearn_and_absent_classes_have_none():
    logits, labels = normal(40, 5), LABELS.clone()
    labels[:, 1], labels[:, 2] = 0, 1
    found = average_precision(logits, labels)
    kept = [0, 3, 4]
    expected = average_precision_score(labels[:, kept].numpy(), logits[:, kept].numpy(), average=None)
    assert torch.allclose(found[kept], torch.tensor(expected))
    assert found[[1, 2]].isnan().all()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(4), r"shape \(4,\); expected \(4, 3\)"),
        (torch.zeros(4, 2), r"shape \(4, 2\); expected \(4, 3\)"),
        (torch.zeros(5, 3), r"shape \(5, 3\); expected \(4, 3\)"),
        (torch.eye(4, 3) * 2, "hold 2 in row 0, column 0"),
        (torch.full((4, 3), -1), "hold -1 in row 0, column 0"),
        (torch.full((4, 3), torch.nan), "hold nan in row 0, column 0"),
    ],
)
def test_what_is_no_label_matrix_is_named(labels: torch.Tensor, said: str):
    with pytest.raises(ValueError, match=said):
        label_matrix(labels, 4, 3)
