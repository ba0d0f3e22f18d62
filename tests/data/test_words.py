import pytest
import torch

from pyro_gvae.data.words import count_words

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
