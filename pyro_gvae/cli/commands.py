"""What a trained model says and makes, from its run folder into files: evaluate, encode, reconstruct, sample."""

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.utils import save_image

from ..config.commands import EncodeConfig, EvaluateConfig, ModelConfig, ReconstructConfig, SampleConfig
from ..data.dataset import fixed_part
from ..evaluate.generate import encode, reconstruct, sample
from ..evaluate.metrics import evaluate, evaluation_table
from ..runs.files import replacing, write_csv, write_json
from ..train.trained import Trained, load_model

#: Pixels of the larger edge of an image in a picture, at most, that small images are enlarged to.
EDGE = 64


def evaluate_command(config: EvaluateConfig) -> str:
    """Write NAME.json, NAME-metrics.csv and NAME-latents.csv; the table for the terminal."""
    trained, folder = _opened(config, "evaluation")
    found = evaluate(
        trained.vae,
        trained.data,
        num_data=config.num_data,
        num_particles=config.particles,
        evidence=config.evidence,
        max_memory=_bytes(config.max_memory),
        seed=config.random_seed,
    )
    write_json(folder / f"{trained.name}.json", found.as_json())
    write_csv(folder / f"{trained.name}-metrics.csv", found.metrics)
    write_csv(folder / f"{trained.name}-latents.csv", found.latents)
    return f"{trained.name}\n{evaluation_table(found)}\n\nfiles: {folder / trained.name}*"


def encode_command(config: EncodeConfig) -> str:
    """Write the codes of data, category numbers (M, N), as CSV and safetensors, with the labels that there are."""
    trained, folder = _opened(config, "codes")
    part = fixed_part(trained.data, config.part, config.num_data)
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        codes = encode(trained.vae, part.x, config.kind, max_memory=_bytes(config.max_memory)).argmax(-1)  # (M, N)
    tensors = {"codes": codes} | ({} if part.labels is None else {"labels": part.labels})
    frame = pd.DataFrame(codes.numpy(), columns=[f"latent_{n}" for n in range(codes.shape[1])])
    if part.labels is not None:
        frame["label"] = part.labels.numpy()
    path = folder / f"{trained.name}-{config.part}-{config.kind}"
    _save(path, tensors)
    write_csv(path.with_name(f"{path.name}.csv"), frame)
    used = len(codes.unique(dim=0))
    return f"{frame.head().to_string()}\n{len(codes)} data, {used} different codes.\n\nfiles: {path}.csv, .safetensors"


def reconstruct_command(config: ReconstructConfig) -> str:
    """Write images and their reconstructions, each in the row below its image."""
    trained, folder = _opened(config, "reconstructions")
    x = fixed_part(trained.data, config.part, config.num_data).x
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        found = reconstruct(trained.vae, x, config.kind, max_memory=_bytes(config.max_memory))
    path = folder / f"{trained.name}-{config.part}-{config.kind}"
    _save(path, {"inputs": x, "reconstructions": found})
    rows = [row for pair in zip(x.split(10), found.split(10), strict=True) for row in pair]
    _save_png(path, rows, trained.data.image_shape)
    error = (x - found).square().sum(-1).mean().item()
    return f"{len(x)} images, mean squared distance {error:.3f} an image.\n\nfiles: {path}.png, .safetensors"


def sample_command(config: SampleConfig) -> str:
    """Write images of codes drawn from the prior."""
    trained, folder = _opened(config, "samples")
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        found = sample(trained.vae, config.num_samples, pixels=config.pixels)
    path = folder / f"{trained.name}-{'pixels' if config.pixels else 'means'}"
    _save(path, {"samples": found})
    _save_png(path, list(found.split(10)), trained.data.image_shape)
    return f"{len(found)} samples.\n\nfiles: {path}.png, .safetensors"


def _opened(config: ModelConfig, kind: str) -> tuple[Trained, Path]:
    trained = load_model(config.run, config.estimator, config.seed)
    return trained, config.output or config.run / kind


def _bytes(gigabytes: float | None) -> float | None:
    return None if gigabytes is None else gigabytes * 1e9


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    with replacing(path.with_name(f"{path.name}.safetensors")) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def _save_png(path: Path, rows: list[Tensor], image_shape: tuple[int, int]) -> None:
    """Rows of up to 10 images each, small images enlarged; a short row is filled with black."""
    width, factor = len(rows[0]), max(1, EDGE // max(image_shape))
    full = [torch.cat([row, row.new_zeros(width - len(row), row.shape[1])]) for row in rows]
    images = torch.cat(full).unflatten(-1, (1, *image_shape)).clamp(0, 1)
    images = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    with replacing(path.with_name(f"{path.name}.png")) as temporary:
        save_image(images, temporary, format="png", nrow=width, pad_value=0.5)
