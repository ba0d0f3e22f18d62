"""Convert texts to counts of words."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Words(NamedTuple):
    """Bags of words.

    Args:
        counts: how often each word is in each document, (M, D), float32.
        vocabulary: the D words, in the order of the columns.
    """

    counts: Tensor
    vocabulary: tuple[str, ...]


def count_words(
    texts: Iterable[str], *, vocabulary: Iterable[str] | None = None, max_words: int = 1000, **options: Any
) -> Words:
    r"""Count the words of texts with scikit-learn's `CountVectorizer`.

    Args:
        texts: M documents.
        vocabulary: the words to count, such as those of the training texts; None takes the most frequent.
        max_words: how many words to count, if no vocabulary is given.
        **options: options of `CountVectorizer`, such as `stop_words="english"`, `min_df=2` or `ngram_range=(1, 2)`.

    Returns:
        Counts (M, D) and the D words; documents without any of them have a row of zeros.

    Raises:
        ValueError: if there are no documents, `texts` is one string, or no word is left.

    Example:
        >>> words = count_words(["a rose is a rose", "is it"], token_pattern=r"\w+")
        >>> words.vocabulary, words.counts.tolist()
        (('a', 'is', 'it', 'rose'), [[2.0, 1.0, 0.0, 2.0], [0.0, 1.0, 1.0, 0.0]])
        >>> count_words(["it is"], vocabulary=words.vocabulary).counts.tolist()
        [[0.0, 1.0, 1.0, 0.0]]
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if isinstance(texts, str):
        raise ValueError("Expected several texts, but found one string. Try [text].")
    texts = list(texts)
    if not texts:
        raise ValueError("Expected at least one text, but found none.")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"Expected texts, but found a {type(text).__name__} at position {number}.")
    given = None if vocabulary is None else list(vocabulary)
    counter = CountVectorizer(vocabulary=given, max_features=None if given else max_words, **options)
    try:
        counted = counter.fit_transform(texts)
    except ValueError as error:
        raise ValueError(f"Expected texts with words, but found none that are counted: {error}") from error
    return Words(torch.from_numpy(counted.toarray()).float(), tuple(counter.get_feature_names_out()))
