from dataclasses import replace

import pytest
import torch

from pyro_gvae.data.dataset import Dataset
from pyro_gvae.data.words import count_words
from pyro_gvae.runs.config import write_config
from pyro_gvae.train.kept_data import keep_data, read_data

TEXTS = ["tea and more tea", "coffee", "more coffee, please"]


def test_words_of_new_texts_are_counted_in_the_columns_of_the_old_ones():
    words = count_words(TEXTS, max_words=3)
    assert words.vocabulary == ("coffee", "more", "tea")
    assert words.counts.tolist() == [[0, 1, 2], [1, 0, 0], [1, 1, 0]]
    again = count_words(["tea tea tea", "cocoa"], vocabulary=words.vocabulary)
    assert again.vocabulary == words.vocabulary and again.counts.tolist() == [[0, 0, 3], [0, 0, 0]]
    assert again.counts.dtype == torch.float32


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ("tea", "Expected several texts, but found one string"),
        ([], "Expected at least one text"),
        (["tea", None], "Expected texts, but found a NoneType at position 1"),
        (["?", "!"], "Expected texts with words, but found none"),
    ],
)
def test_what_has_no_words_is_refused(texts, sentence):
    with pytest.raises(ValueError, match=sentence):
        count_words(texts)


def test_a_data_set_keeps_the_words_that_it_counts(tmp_path):
    words = count_words(TEXTS, max_words=3)
    data = Dataset("texts", words.counts, words.counts[:1], (1, 3), value_range=(0, 2), vocabulary=words.vocabulary)
    write_config(tmp_path, {"data": keep_data(tmp_path, data)})
    assert read_data(tmp_path).vocabulary == words.vocabulary
    with pytest.raises(ValueError, match="Expected 3 words, one for each value of a datum, but found 2"):
        replace(data, vocabulary=words.vocabulary[:2])
