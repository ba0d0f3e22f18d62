"""The commands on one trained model: each writes files and returns what to print."""

from pathlib import Path

import pandas as pd
import torch

from ..config.commands import (
    EncodeConfig,
    EvaluateConfig,
    ImputeConfig,
    ModelConfig,
    ReconstructConfig,
    SampleConfig,
)
from ..config.units import in_bytes
from ..data.files import read_file
from ..data.parts import fixed_part
from ..data.tables import beside, decoded
from ..evaluate.generate import encode, numbers_of, reconstruct, sample
from ..evaluate.impute import impute
from ..evaluate.metrics import evaluate
from ..evaluate.tables import evaluation_table
from ..runs.files import write_json
from ..runs.folder import check_writable
from ..runs.frames import write_csv
from ..train.trained import Trained, load_model, on_file
from .files import save, save_png
from .said import Said


def evaluate_command(config: EvaluateConfig) -> Said:
    """Evaluate a model, write NAME.json, NAME-metrics.csv and NAME-latents.csv, and return the table to print."""
    trained, folder = _load(config, "evaluation")
    trained = on_file(trained, config.data)
    found = evaluate(
        trained.vae,
        trained.data,
        num_data=config.num_data,
        num_particles=config.particles,
        evidence=config.evidence,
        max_memory=in_bytes(config.max_memory),
        seed=config.random_seed,
    )
    write_json(folder / f"{trained.name}.json", found.as_json())
    write_csv(folder / f"{trained.name}-metrics.csv", found.metrics)
    write_csv(folder / f"{trained.name}-latents.csv", found.latents)
    text = f"{trained.name}\n{evaluation_table(found)}\n\nfiles: {folder / trained.name}*"
    return Said(text, {"model": trained.name, "folder": folder} | found.as_json())


def encode_command(config: EncodeConfig) -> Said:
    """Write category numbers (M, N), and values (M, L) of continuous latents, as CSV and safetensors, with labels."""
    trained, folder = _load(config, "codes")
    trained = on_file(trained, config.data)
    part = fixed_part(trained.data, config.part, config.num_data)
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        found = encode(trained.vae, part.x, config.kind, max_memory=in_bytes(config.max_memory))
    numbers = numbers_of(found)
    tensors = dict(numbers) if isinstance(found, dict) else {"codes": numbers["latent"]}
    tensors |= {} if part.labels is None else {"labels": part.labels}
    columns = {f"{name}_{n}": column for name, own in numbers.items() for n, column in enumerate(own.T.numpy())}
    frame = pd.DataFrame(columns)
    if part.labels is not None:
        frame["label"] = part.labels.numpy()
    part_name = config.part if config.data is None else config.data.stem
    path = folder / f"{trained.name}-{part_name}-{config.kind}"
    save(path, tensors)
    write_csv(path.with_name(f"{path.name}.csv"), frame)
    codes = torch.cat([own for own in numbers.values() if not own.is_floating_point()], 1)
    used = len(codes.unique(dim=0))
    text = f"{frame.head().to_string()}\n{len(codes)} data, {used} different codes."
    content = {"model": trained.name, "different_codes": used, "codes": frame.to_dict("records")}
    return Said(f"{text}\n\nfiles: {path}.csv, .safetensors", content)


def reconstruct_command(config: ReconstructConfig) -> Said:
    """Write data and their reconstructions; a picture has rows of images, each followed by its reconstructions."""
    trained, folder = _load(config, "reconstructions")
    x = fixed_part(trained.data, config.part, config.num_data).x
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        found = reconstruct(trained.vae, x, config.kind, max_memory=in_bytes(config.max_memory))
    path = folder / f"{trained.name}-{config.part}-{config.kind}"
    save(path, {"inputs": x, "reconstructions": found})
    if trained.data.columns is not None:
        rows = beside(*(decoded(values, trained.data.columns) for values in (x, found)))
        write_csv(path.with_name(f"{path.name}.csv"), rows)
        text = f"{rows.head(6).to_string(index=False)}\n{len(x)} rows.\n\nfiles: {path}.csv, .safetensors"
        return Said(text, {"model": trained.name, "rows": rows.to_dict("records")})
    shown = (trained.vae.observation.to_pixels(images).split(10) for images in (x, found))
    rows = [row for pair in zip(*shown, strict=True) for row in pair]
    save_png(path, rows, trained.data.image_shape)
    error = (x - found).square().sum(-1).mean().item()
    text = f"{len(x)} images, mean squared distance {error:.3f} per image.\n\nfiles: {path}.png, .safetensors"
    return Said(
        text, {"model": trained.name, "images": len(x), "mean_squared_distance": error, "picture": f"{path}.png"}
    )


def sample_command(config: SampleConfig) -> Said:
    """Write data generated from codes that are sampled from the prior."""
    trained, folder = _load(config, "samples")
    with torch.random.fork_rng():
        torch.manual_seed(config.random_seed)
        found = sample(trained.vae, config.num_samples, pixels=config.pixels)
    path = folder / f"{trained.name}-{'pixels' if config.pixels else 'means'}"
    save(path, {"samples": found})
    if trained.data.columns is not None:
        rows = decoded(found, trained.data.columns)
        write_csv(path.with_name(f"{path.name}.csv"), rows)
        text = f"{rows.head().to_string(index=False)}\n{len(found)} samples.\n\nfiles: {path}.csv, .safetensors"
        return Said(text, {"model": trained.name, "samples": rows.to_dict("records")})
    save_png(path, list(trained.vae.observation.to_pixels(found).split(10)), trained.data.image_shape)
    text = f"{len(found)} samples.\n\nfiles: {path}.png, .safetensors"
    return Said(text, {"model": trained.name, "samples": len(found), "picture": f"{path}.png"})


def impute_command(config: ImputeConfig) -> Said:
    """Fill the missing cells of a table; write the table, the cells with their certainty, and all levels."""
    trained, folder = _load(config, "imputed")
    table = read_file(config.file).data
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"Expected a table with named columns in '{config.file}', but found arrays. Try a .csv file.")
    found = impute(
        trained.vae,
        table,
        averaging=config.averaging,
        num_particles=config.particles,
        max_memory=in_bytes(config.max_memory),
        seed=config.random_seed,
    )
    path = folder / f"{trained.name}-{config.file.stem}"
    for kind in ("table", "cells", "levels"):
        write_csv(path.with_name(f"{path.name}-{kind}.csv"), getattr(found, kind))
    told = [f"{len(found.cells)} cells of {len(table)} rows filled", *found.notes()]
    shown = "\n".join([found.cells.head(10).to_string(index=False), *told])
    files = f"files: {path}-table.csv, -cells.csv, -levels.csv"
    content = {"model": trained.name, "cells": found.cells.to_dict("records"), "notes": found.notes()}
    return Said(f"{shown}\n\n{files}", content)


def _load(config: ModelConfig | ImputeConfig, kind: str) -> tuple[Trained, Path]:
    trained = load_model(config.run, config.estimator, config.seed, data_dir=config.data_dir)
    folder = config.output or config.run / kind
    check_writable(folder)
    return trained, folder
