"""Measure what the two runs drew against what the formulas of ``make_data.py`` say.

    python check.py notes RUN [--each 4]
    python check.py weather RUN [--count 512]

Notes: the highest peak of the Fourier transform is the fundamental, for each of the
instruments, so it is the pitch; the harmonics and the decay tell the instrument. Weather:
variance and cross-spectrum by bands of wave length (the worst of those that hold a
twentieth of the field's variance), and the correlation of the drawn wind with the slope
of the drawn pressure. Beside each figure stands the same of fresh data.

Dimensions: N samples, L values of a sound, H and W rows and columns.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from make_data import (
    CLASSES,
    INSTRUMENTS,
    LENGTH,
    SAMPLE_RATE_HZ,
    SIDE,
    Floats,
    note,
    pitch_hz,
    slope_to_wind,
    spectra,
    wave_numbers,
    weather,
)

PADDING = 4
MOST_HARMONICS = 7
BANDS = 8


def spectrum_of(sounds: Floats) -> Floats:
    """Return the amplitudes of frequencies, padded four times. Shape (N, 2 L + 1)."""
    return np.abs(np.fft.rfft(sounds * np.hanning(LENGTH), PADDING * LENGTH))


def measure_pitch(sounds: Floats) -> Floats:
    """Return the frequency of the highest peak in Hz, by a parabola through its top. Shape (N,)."""
    levels = np.log(spectrum_of(sounds) + 1e-12)
    top = levels[:, 1:-1].argmax(axis=1) + 1
    rows = np.arange(len(levels))
    left, middle, right = (levels[rows, top + k] for k in (-1, 0, 1))
    shift = 0.5 * (left - right) / (left - 2 * middle + right)
    return (top + shift) * SAMPLE_RATE_HZ / (PADDING * LENGTH)


def features(sounds: Floats, pitches: Floats) -> Floats:
    """Return what tells instruments apart: shares of the harmonics, and what is left in the end.

    Args:
        sounds: Shape (N, L).
        pitches: Fundamentals in Hz. Shape (N,).

    Returns:
        Amplitudes of the harmonics, of length 1 together, and the root of the second half's
        power beside the first's. Shape (N, 8).
    """
    found = spectrum_of(sounds)
    levels = []
    for k in range(1, MOST_HARMONICS + 1):
        centre = (k * pitches * PADDING * LENGTH / SAMPLE_RATE_HZ).round().astype(int)
        near = (centre[:, None] + np.arange(-16, 17)).clip(0, found.shape[1] - 1)
        levels.append(np.take_along_axis(found, near, 1).max(axis=1))
    shares = np.stack(levels, 1)
    shares /= np.linalg.norm(shares, axis=1, keepdims=True)
    first, second = (np.square(half).mean(axis=1) for half in np.split(sounds, 2, axis=1))
    return np.column_stack([shares, np.sqrt(second / (first + 1e-12))])


def measure_instrument(sounds: Floats, pitches: Floats) -> np.ndarray:
    """Return the instrument whose features are nearest, whatever the pitch. Shape (N,)."""
    rng = np.random.default_rng(1)
    known = []
    for number in range(len(INSTRUMENTS)):
        labels = 4 * len(INSTRUMENTS) + np.full(8, number)
        played = np.stack([note(int(label), rng) for label in labels])
        known.append(features(played, np.full(8, pitch_hz(int(labels[0])))).mean(axis=0))
    away = features(sounds, pitches)[:, None] - np.stack(known)[None]
    return np.square(away).sum(axis=2).argmin(axis=1)


def judge_notes(sounds: Floats, labels: np.ndarray) -> dict[str, float]:
    """Return how notes agree with their labels.

    Args:
        sounds: Shape (N, L).
        labels: Classes. Shape (N,).
    """
    wanted = np.array([pitch_hz(int(label)) for label in labels])
    pitches = measure_pitch(sounds)
    cents = np.abs(1200 * np.log2(pitches / wanted))
    instruments = measure_instrument(sounds, wanted) == labels % len(INSTRUMENTS)
    floor = spectrum_of(sounds) ** 2
    frequency = np.arange(floor.shape[1]) * SAMPLE_RATE_HZ / (PADDING * LENGTH)
    far = np.abs(frequency[None] / wanted[:, None] % 1 - 0.5) < 0.25
    between = (floor * far).sum(axis=1) / floor.sum(axis=1)
    return {
        "notes": len(labels),
        "right semitone": round(float((cents < 50).mean()), 4),
        "median error, cents": round(float(np.median(cents)), 2),
        "95 % below, cents": round(float(np.percentile(cents, 95)), 2),
        "right instrument": round(float(instruments.mean()), 4),
        "power between the harmonics, dB": round(float(10 * np.log10(np.median(between))), 1),
    }


def bands() -> tuple[np.ndarray, Floats]:
    """Return the band of each wave, and the middle wave length of each in cells."""
    _, _, wave = wave_numbers()
    edges = np.geomspace(wave[wave > 0].min() * 0.99, wave.max() * 1.01, BANDS + 1)
    number = np.digitize(wave, edges) - 1
    middle = np.sqrt(edges[1:] * edges[:-1])
    return number, 2 * np.pi / middle / 100e3


def judge_weather(fields: Floats) -> dict[str, Any]:
    """Return how fields agree with the spectra that they should have.

    Args:
        fields: Pressure and wind. Shape (N, 2, H, W).
    """
    waves = np.fft.fft2(fields) / SIDE**2
    pressure, wind, cross = spectra()
    drawn = (np.abs(waves) ** 2).mean(axis=0)
    together = (waves[:, 1] * waves[:, 0].conj()).mean(axis=0)
    number, middle = bands()
    rows = []
    for band in range(BANDS):
        inside = number == band
        shares = [float(true[inside].sum() / true.sum()) for true in (pressure, wind)]
        turned = (together * cross.conj())[inside].sum().real / (np.abs(cross[inside]) ** 2).sum()
        rows.append(
            {
                "wave length, cells": round(float(middle[band]), 1),
                "share of the pressure": round(shares[0], 4),
                "share of the wind": round(shares[1], 4),
                "pressure, of true": round(
                    float(drawn[0][inside].sum() / pressure[inside].sum()), 3
                ),
                "wind, of true": round(float(drawn[1][inside].sum() / wind[inside].sum()), 3),
                "cross-spectrum, of true": round(float(turned), 3),
            }
        )
    slope = np.fft.ifft2(slope_to_wind() * waves[:, 0] * 100).real.ravel()
    there = np.fft.ifft2(waves[:, 1]).real.ravel()
    true = np.sqrt((np.abs(slope_to_wind()) ** 2 * pressure * 100**2).sum() / wind.sum())
    worst = {
        name: max(
            abs(row[f"{name}, of true"] - 1) for row in rows if row[f"share of the {name}"] >= 0.05
        )
        for name in ("pressure", "wind")
    }
    deviations = np.sqrt([pressure.sum(), wind.sum()])
    return {
        "fields": len(fields),
        "deviation of the pressure, of true": round(float(fields[:, 0].std() / deviations[0]), 4),
        "deviation of the wind, of true": round(float(fields[:, 1].std() / deviations[1]), 4),
        "correlation of wind and slope": round(float(np.corrcoef(slope, there)[0, 1]), 4),
        "true correlation of wind and slope": round(float(true), 4),
        "worst band of the pressure": round(worst["pressure"], 3),
        "worst band of the wind": round(worst["wind"], 3),
        "bands": rows,
    }


def main() -> None:
    """Draw, measure, print."""
    from mezzotint.train.trainer import Trainer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("notes", "weather"))
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--each", type=int, default=4, help="notes of each class")
    parser.add_argument("--count", type=int, default=512, help="fields")
    parser.add_argument("--steps", type=int, help="solver steps; the run's own without")
    parser.add_argument("--scheduler", help="solver; the run's own without")
    parser.add_argument("--scale", type=float, help="guidance; the run's own without")
    options = parser.parse_args()
    trainer, rng = Trainer.open(options.run), np.random.default_rng(5)
    if options.what == "notes":
        labels = np.tile(np.arange(len(CLASSES)), options.each)
        drawn = trainer.draw(
            len(labels),
            labels=labels.tolist(),
            num_inference_steps=options.steps,
            scheduler=options.scheduler,
            guidance_scale=options.scale,
        )
        fresh = np.stack([note(int(label), rng) for label in labels])
        found = {"drawn": judge_notes(drawn[:, 0], labels), "data": judge_notes(fresh, labels)}
    else:
        drawn = trainer.draw(
            options.count, num_inference_steps=options.steps, scheduler=options.scheduler
        )
        found = {"drawn": judge_weather(drawn), "data": judge_weather(weather(options.count, rng))}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
