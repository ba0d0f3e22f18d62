"""Draw pictures of trained models from arrays: reconstructions, prior samples, code usage."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .style import in_house_style, panel_grid, wrapped


@in_house_style
def reconstructions(cells: Mapping[str, Mapping[str, np.ndarray]], image_shape: tuple[int, int]) -> Figure:
    """Draw the same test images with their reconstructions before and after training, for each estimator.

    Args:
        cells: Label to the arrays `inputs`, `reconstructions_start` (if known) and `reconstructions_end`, each (R, D),
            in [0, 1].
        image_shape: Height and width, with product D.

    Returns:
        One panel for each label with the rows input, start, end.
    """
    rows = {"input": "inputs", "start": "reconstructions_start", "end": "reconstructions_end"}
    first = next(iter(cells.values()))
    rows = {said: name for said, name in rows.items() if name in first}
    count = first["inputs"].shape[0]
    columns = 1 if len(cells) <= 2 else 2
    width = 10 / columns
    height = len(rows) * (width - 0.6) / count * image_shape[0] / image_shape[1] + 0.4
    titles, more = wrapped(list(cells), width)
    figure, panels = panel_grid(len(cells), columns, size=(width, height + more - _untitled(titles)))
    for axes, title, arrays in zip(panels, titles, cells.values(), strict=True):
        _draw_mosaic(axes, np.concatenate([arrays[name] for name in rows.values()]), image_shape, columns=count)
        top, bottom = sorted(axes.get_ylim())
        axes.set_yticks(np.linspace(top, bottom, 2 * len(rows) + 1)[1::2], list(rows))
        axes.set_title(title)
    return figure


@in_house_style
def prior_samples(cells: Mapping[str, Mapping[str, np.ndarray]], image_shape: tuple[int, int]) -> Figure:
    """Draw the pixel means of codes sampled from the prior.

    Args:
        cells: Label to the array `samples` (M, D), in [0, 1].
        image_shape: Height and width, with product D.

    Returns:
        One panel for each label with its samples in a grid.
    """
    columns = min(4, len(cells))
    width = 10 / max(2, columns)
    titles, more = wrapped(list(cells), width)
    figure, panels = panel_grid(len(cells), columns, size=(width, width + 0.2 + more - _untitled(titles)))
    for axes, title, arrays in zip(panels, titles, cells.values(), strict=True):
        _draw_mosaic(axes, arrays["samples"], image_shape, columns=math.ceil(math.sqrt(len(arrays["samples"]))))
        axes.spines[:].set(visible=True, color="#dddddd")
        axes.set_title(title)
    return figure


@in_house_style
def code_usage(cells: Mapping[str, Mapping[str, np.ndarray]], image_shape: tuple[int, int]) -> Figure:
    """Draw how much each category of each latent is used, what it looks like, and the perplexity of each latent.

    Categories have no order, so each row is sorted by use. Colours show K times the share of the data: at 1, a category
    is used as often as in uniform use; the colours of less and more use differ. The bars show the perplexity exp(H) of
    each row: from 1 (only one category) to K (all categories equally).

    Args:
        cells: Label to the arrays `code_usage` (N, K), rows that sum to 1, and perhaps `category_pictures` (N, K, D),
            in [0, 255]; see :func:`~pyro_gvae.report.tiles.category_pictures`.
        image_shape: Height and width, with product D.

    Returns:
        One heat map for each label, on one colour scale, with the perplexities as bars.
    """
    latents, categories = next(iter(cells.values()))["code_usage"].shape
    titles, more = wrapped(list(cells), 4.5)  # of 5 inches, beside the colour scale
    row = _Row.of(categories, image_shape if has_category_pictures(cells) else None)
    size = (5.0, row.height_of(latents) + more - (0.0 if not row.columns else _untitled(titles)))
    figure, panels = panel_grid(len(cells), columns=min(2, len(cells)), size=size)
    most = max(2.0, *(float(categories * arrays["code_usage"].max()) for arrays in cells.values()))
    norm = TwoSlopeNorm(vcenter=1.0, vmin=0.0, vmax=most)
    for axes, title, arrays in zip(panels, titles, cells.values(), strict=True):
        usage = arrays["code_usage"]
        order = np.argsort(-usage, axis=1, kind="stable")
        for latent in range(latents):
            top, left, right = latent - 0.5, -0.5, categories - 0.5
            uses = categories * usage[latent, order[latent]]
            place = (left, right, top + row.share, top)
            image = axes.imshow(uses[np.newaxis], aspect="auto", cmap="PuOr", norm=norm, extent=place)
            if row.columns:
                shown = row.pictures(arrays["category_pictures"][latent, order[latent]], image_shape)
                place = (left, right, top + 0.97, top + row.share)
                axes.imshow(shown, aspect="auto", cmap="gray_r", vmin=0, vmax=255, interpolation="none", extent=place)
        axes.set(title=title, xlabel="category, most used first", ylabel="latent")
        axes.set(xlim=(-0.5, categories - 0.5), ylim=(latents - 0.5, -0.5))
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value + 1:.0f}"))  # ranks; latents are numbers
        _draw_perplexity(axes, perplexity(usage), categories)
    ticks = [0, 1, round(most, 1)]
    figure.colorbar(image, ax=panels, label="K x share", shrink=0.8, aspect=30, ticks=ticks)
    return figure


def has_category_pictures(cells: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
    """Return whether each of several models has pictures of its categories, which older folders lack."""
    return bool(cells) and all("category_pictures" in arrays for arrays in cells.values())


#: Inches: all categories of a latent; a latent's use, alone and above pictures; the highest picture.
WIDTH, ALONE, ABOVE, HIGHEST = 2.7, 0.28, 0.13, 0.5


class _Row(NamedTuple):
    """The place of a latent in a heat map: its use above, and pictures of its categories below.

    Args:
        height: inches.
        share: the part of the height that its use takes.
        columns: pixels of a category's place, in which its picture stands in the middle; 0 without pictures.
    """

    height: float
    share: float
    columns: int

    @classmethod
    def of(cls, categories: int, image_shape: tuple[int, int] | None) -> "_Row":
        """Return the place of each latent, with pictures of that shape or without."""
        if image_shape is None:
            return cls(ALONE, 1.0, 0)
        (height, width), each = image_shape, WIDTH / categories
        high = min(each * height / (width + 1), HIGHEST)
        total = (ABOVE + high) / 0.97
        return cls(total, ABOVE / total, max(width + 1, round(height * each / high)))

    def height_of(self, latents: int) -> float:
        """Return the height of a panel in inches."""
        if not self.columns:
            return float(np.clip(1.0 + self.height * latents, 2.2, 7.0))
        return max(1.6, 0.67 + self.height * latents)  # whatever it is, so that pictures keep their shape

    def pictures(self, images: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
        """Put images (K, D) beside each other, with NaN between them."""
        height, width = image_shape
        canvas = np.full((len(images), height, self.columns), np.nan)
        start = (self.columns - width) // 2
        canvas[:, :, start : start + width] = images.reshape(-1, height, width)
        return canvas.swapaxes(0, 1).reshape(height, -1)


def _untitled(titles: Sequence[str]) -> float:
    """Return the inches that a panel is lower if it needs no title."""
    return 0.0 if any(titles) else 0.55


def perplexity(usage: np.ndarray) -> np.ndarray:
    """Compute exp(H) of each row of probabilities: the number of equally used categories with the same entropy.

    Args:
        usage: (N, K), rows that sum to 1.

    Returns:
        (N,), between 1 and K.

    Example:
        >>> perplexity(np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])).tolist()
        [4.0, 1.0]
    """
    logs = np.log(usage, where=usage > 0, out=np.zeros_like(usage))
    return np.exp(-(usage * logs).sum(axis=1))


def _draw_perplexity(heatmap: Axes, values: np.ndarray, categories: int) -> None:
    axes = heatmap.inset_axes((1.04, 0.0, 0.3, 1.0), sharey=heatmap)
    axes.barh(np.arange(len(values)), values, height=0.7, color="#9ecae1")
    axes.set_xlim(0, categories)
    axes.set_xticks([1, categories])
    axes.set_xlabel("perplexity")
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.grid(visible=False)
    if len(values) <= 20:
        for row, value in enumerate(values):
            axes.text(0.04 * categories, row, f"{value:.1f}", va="center", fontsize=8, color="#222222")


def mosaic(images: np.ndarray, image_shape: tuple[int, int], columns: int) -> np.ndarray:
    """Arrange images in one array, with a margin of one pixel (or a twelfth of their height) around each.

    Args:
        images: (R, D).
        image_shape: Height H and width W, with H W = D.
        columns: The number of images in a row.

    Returns:
        The combined picture; NaN in the margins and in empty places.

    Raises:
        ValueError: If H W is not D.

    Example:
        >>> mosaic(np.array([[1.0, 2.0], [3.0, 4.0]]), (1, 2), columns=2)[1].tolist()
        [nan, 1.0, 2.0, nan, 3.0, 4.0, nan]
    """
    height, width = image_shape
    if images.shape[1] != height * width:
        raise ValueError(
            f"Expected images of {height} x {width} pixels, but found {images.shape[1]} dimensions. "
            "Try the image shape of the data set."
        )
    rows, margin = math.ceil(len(images) / columns), max(1, height // 12)
    tiles = np.full((rows * columns, height + margin, width + margin), np.nan)
    tiles[: len(images), margin:, margin:] = images.reshape(-1, height, width)
    canvas = tiles.reshape(rows, columns, height + margin, width + margin).swapaxes(1, 2)
    flat = canvas.reshape(rows * (height + margin), columns * (width + margin))
    return np.pad(flat, ((0, margin), (0, margin)), constant_values=np.nan)


def _draw_mosaic(axes: Axes, images: np.ndarray, image_shape: tuple[int, int], *, columns: int) -> None:
    axes.imshow(mosaic(images, image_shape, columns), cmap="gray_r", vmin=0.0, vmax=1.0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
