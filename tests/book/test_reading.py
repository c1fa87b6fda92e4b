"""The minutes to read: they grow with what a reader meets, and with nothing that is folded away."""

import pytest
from ood_book.reading import minutes

WORDS = "# " + "word " * 200 + "\n"
TEXT, SHOWN = "# %% [markdown]\n" + WORDS, "# %%\nx = 1\n"
EXERCISE = (
    "# %% [markdown]\n# ```{exercise-start} A\n# ```\n"
    + WORDS
    + SHOWN
    + "# %% [markdown]\n# ```{exercise-end}\n# ```\n"
)


def test_two_hundred_words_and_a_cell_of_code_take_a_minute_each():
    assert minutes(TEXT) == 1
    assert minutes(TEXT * 3 + SHOWN * 2) == 5


@pytest.mark.parametrize(
    "aside",
    [
        '# %% tags=["hide-input"]\nx = 1\n',
        '# %% tags=["hide-cell", "parameters"]\nx = 1\n',
        f"# %% [markdown]\n# ```{{dropdown}} Why\n{WORDS}# ```\n",
        f"# %% [markdown]\n# ```{{admonition}} Why\n# :class: tip dropdown\n{WORDS}# ```\n",
        f"# %% [markdown]\n# <details><summary>A</summary>\n#\n{WORDS}#\n# </details>\n",
        f"# %% [markdown]\n# <!-- made by ood-book sync -->\n{WORDS}# <!-- end -->\n",
        EXERCISE,
        EXERCISE.replace("exercise-", "solution-"),
    ],
)
def test_what_is_folded_and_the_exercises_take_none(aside):
    assert minutes(TEXT * 2 + aside + TEXT) == 3


def test_a_box_that_is_open_counts_as_its_words():
    assert minutes(TEXT + f"# %% [markdown]\n# ```{{admonition}} Why\n{WORDS}# ```\n") == 2
