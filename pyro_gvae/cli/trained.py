"""The commands on one trained model: each writes files and returns the text to print."""

from pathlib import Path

import torch

from ..config.commands import (
    EncodeConfig,
    EvaluateConfig,
    ImputeConfig,
    ModelConfig,
    ReconstructConfig,
    SampleConfig,
)
from ..config.models import Labels
from ..config.units import in_bytes
from ..data.files import read_file
from ..data.labels import class_names, judged, use_of_labels
from ..data.parts import fixed_part, rows_of_part
from ..data.sliced import large_table
from ..data.splits import as_frame
from ..data.tables import beside, decoded
from ..evaluate.encoded import encoded
from ..evaluate.generate import numbers_of, reconstruct, sample
from ..evaluate.impute import impute
from ..evaluate.metrics import evaluate
from ..evaluate.tables import evaluation_table
from ..runs.files import write_json
from ..runs.folder import check_writable
from ..runs.frames import write_csv, write_records
from ..train.trained import Trained, load_model, on_file, rows_of_file
from .files import save, save_png
from .said import Said
from .slices import code_table, encode_rows, impute_rows


def evaluate_command(config: EvaluateConfig) -> Said:
    """Evaluate a model, write NAME.json, NAME-metrics.csv and NAME-latents.csv, and return the table to print."""
    trained, folder = _load(config, "evaluation")
    trained = on_file(trained, config.data, config.num_data)
    found = evaluate(
        trained.vae,
        trained.data,
        num_data=config.num_data,
        num_particles=config.num_particles,
        evidence=config.evidence,
        max_memory=in_bytes(config.max_memory),
        seed=config.seed,
    )
    write_json(folder / f"{trained.name}.json", found.as_json())
    write_records(folder / f"{trained.name}-metrics.csv", found.rows)
    write_records(folder / f"{trained.name}-latents.csv", found.latent_rows)
    text = f"{trained.name}\n{evaluation_table(found)}\n\nfiles: {folder / trained.name}*"
    files = [folder / f"{trained.name}{end}" for end in (".json", "-metrics.csv", "-latents.csv")]
    return Said(text, {"model": trained.name, "files": files} | found.as_json())


def encode_command(config: EncodeConfig) -> Said:
    """Write category numbers (M, N), and values (M, L) of continuous latents, as CSV and safetensors, with labels.

    The CSV also has the number of each joint code, if it fits into 64 bits, and its probability.
    """
    trained, folder = _load(config, "codes")
    part_name = config.part if config.data is None else config.data.stem
    path = folder / f"{trained.name}-{part_name}-{config.kind}"
    rows = rows_of_part(trained.data, config.part) if config.data is None else rows_of_file(trained, config.data)
    if rows is not None:
        return encode_rows(trained, rows, config, path)
    trained = on_file(trained, config.data, 1)
    part = fixed_part(trained.data, config.part, config.num_data)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        found = encoded(trained.vae, judged(trained.vae, *part), config.kind, max_memory=in_bytes(config.max_memory))
    numbers = numbers_of(found.codes)
    tensors = dict(numbers) if isinstance(found.codes, dict) else {"codes": numbers["latent"]}
    tensors |= {} if part.labels is None else {"labels": part.labels}
    frame, codes = code_table(found, part.labels)
    if part.labels is not None and (part.labels < 0).any():
        frame["label"] = [None if label < 0 else label for label in part.labels.tolist()]
    save(path, tensors)
    write_csv(path.with_name(f"{path.name}.csv"), frame)
    used = len(codes.unique(dim=0))
    text = f"{frame.head().to_string()}\n{len(codes)} data, {used} different codes."
    files = [f"{path}.csv", f"{path}.safetensors"]
    content = {"model": trained.name, "files": files, "different_codes": used, "codes": frame.to_dict("records")}
    return Said(f"{text}\n\nfiles: {path}.csv, .safetensors", content)


def reconstruct_command(config: ReconstructConfig) -> Said:
    """Write data and their reconstructions; a picture has rows of images, each followed by its reconstructions."""
    trained, folder = _load(config, "reconstructions")
    x, labels = fixed_part(trained.data, config.part, config.num_data)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        given = judged(trained.vae, x, labels)
        found = reconstruct(trained.vae, given, config.kind, max_memory=in_bytes(config.max_memory))
    path = folder / f"{trained.name}-{config.part}-{config.kind}"
    save(path, {"inputs": x, "reconstructions": found})
    if trained.data.columns is not None:
        rows = beside(*(decoded(values, trained.data.columns) for values in (x, found)))
        write_csv(path.with_name(f"{path.name}.csv"), rows)
        text = f"{rows.head(6).to_string(index=False)}\n{len(x)} rows.\n\nfiles: {path}.csv, .safetensors"
        files = [f"{path}.csv", f"{path}.safetensors"]
        return Said(text, {"model": trained.name, "files": files, "rows": rows.to_dict("records")})
    shown = (trained.vae.observation.to_pixels(images).split(10) for images in (x, found))
    rows = [row for pair in zip(*shown, strict=True) for row in pair]
    save_png(path, rows, trained.data.image_shape)
    error = (x - found).square().sum(-1).mean().item()
    text = f"{len(x)} images, mean squared distance {error:.3f} per image.\n\nfiles: {path}.png, .safetensors"
    files = [f"{path}.png", f"{path}.safetensors"]
    return Said(text, {"model": trained.name, "files": files, "images": len(x), "mean_squared_distance": error})


def sample_command(config: SampleConfig) -> Said:
    """Write data generated from codes that are sampled from the prior."""
    trained, folder = _load(config, "samples")
    number = _number_of(config.label, trained)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        found = sample(trained.vae, config.num_samples, pixels=config.pixels, label=number)
    path = folder / f"{trained.name}-{'pixels' if config.pixels else 'means'}{'' if number is None else f'-{number}'}"
    save(path, {"samples": found})
    if trained.data.columns is not None:
        rows = decoded(found, trained.data.columns)
        write_csv(path.with_name(f"{path.name}.csv"), rows)
        text = f"{rows.head().to_string(index=False)}\n{len(found)} samples.\n\nfiles: {path}.csv, .safetensors"
        files = [f"{path}.csv", f"{path}.safetensors"]
        return Said(text, {"model": trained.name, "files": files, "rows": rows.to_dict("records")})
    save_png(path, list(trained.vae.observation.to_pixels(found).split(10)), trained.data.image_shape)
    text = f"{len(found)} samples.\n\nfiles: {path}.png, .safetensors"
    files = [f"{path}.png", f"{path}.safetensors"]
    return Said(text, {"model": trained.name, "files": files, "images": len(found)})


def impute_command(config: ImputeConfig) -> Said:
    """Fill the missing cells of a table; write the table, the cells with their certainty, and all levels."""
    trained, folder = _load(config, "imputed")
    path = folder / f"{trained.name}-{config.file.stem}"
    large = large_table(config.file, in_bytes(trained.config.data_memory))
    if large is not None:
        return impute_rows(trained, large, config, path)
    table = as_frame(read_file(config.file).data)
    if table is None:
        raise ValueError(
            f"Expected a table in '{config.file}', but found images. Try a file as the run was trained on."
        )
    is_given = use_of_labels(trained.vae) is Labels.GIVEN
    labels = getattr(on_file(trained, config.file, 1).data, "test_labels", None) if is_given else None
    found = impute(
        trained.vae,
        table,
        labels=labels,
        averaging=config.averaging,
        num_particles=config.num_particles,
        max_memory=in_bytes(config.max_memory),
        seed=config.seed,
    )
    for kind, frame in found.frames().items():
        write_csv(path.with_name(f"{path.name}-{kind}.csv"), frame)
    told = [f"{len(found.cells)} cells of {len(table)} rows filled.", *found.notes()]
    first = [found.cells.head(10).to_string(index=False)] if len(found.cells) else []
    shown = "\n".join([*first, *told])
    files = [f"{path}-{kind}.csv" for kind in found.frames()]
    content = {"model": trained.name, "files": files, "cells": found.cells.to_dict("records"), "notes": found.notes()}
    return Said(f"{shown}\n\nfiles: {path}-table.csv, -cells.csv, -levels.csv", content)


def _number_of(label: str | None, trained: Trained) -> int | None:
    """Return the number of the class that a label names."""
    if label is None:
        return None
    known = class_names(trained.data)
    if label not in known:
        raise ValueError(f"Expected a label among {', '.join(known[:20])}, but found '{label}'.")
    return known.index(label)


def _load(config: ModelConfig | ImputeConfig, kind: str) -> tuple[Trained, Path]:
    trained = load_model(config.run, config.estimator, config.model_seed, data_dir=config.data_dir)
    folder = config.output or config.run / kind
    check_writable(folder)
    return trained, folder
