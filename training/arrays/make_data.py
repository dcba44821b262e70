"""Make the data of two runs that are not pictures: notes of four instruments, and weather.

    python make_data.py [FOLDER]

Writes ``FOLDER/notes.npz`` (sounds, their labels and the labels' names) and
``FOLDER/weather.npy``; 20 seconds of one core. Both come from formulas that stand here, so that
``check.py`` knows what is true of what was drawn: the pitch of a note, and the spectrum,
the cross-spectrum and so every covariance of the fields.

A note lasts one second: harmonics of a pitch of the equal temperament, strong as the
instrument has them, behind a rise and a fall. Loudness, brightness, decay, the beginning
and a few cents of the pitch are different in each.

The weather is a pressure at sea level, a Gaussian field on a torus with a Matern spectrum, and
the northward wind: geostrophic, that is in balance with the slope of the pressure to the
east, plus a part of its own that knows nothing of the pressure.

Dimensions: N samples, L values of a sound, H and W rows and columns of a field.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAMPLE_RATE_HZ = 8000
LENGTH = 8000
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# Amplitudes of the harmonics, seconds of the rise, decay of the first harmonic in 1/s.
INSTRUMENTS: dict[str, tuple[tuple[float, ...], float, float]] = {
    "flute": ((1.0, 0.18, 0.06), 0.06, 0.0),
    "clarinet": ((1.0, 0.0, 0.55, 0.0, 0.3, 0.0, 0.12), 0.03, 0.0),
    "strings": ((1.0, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1), 0.1, 0.0),
    "harp": ((1.0, 0.5, 0.3, 0.15, 0.08), 0.004, 3.0),
}
CLASSES = tuple(f"{name}4 {instrument}" for name in NAMES for instrument in INSTRUMENTS)
EACH = 60
DETUNE_CENTS = 3.0

SIDE = 32
CELL_M = 100e3
PRESSURE_PA, WIND_M_S = 600.0, 4.0  # deviations of the pressure and of the wind's own part
LENGTH_CELLS, OWN_LENGTH_CELLS, SMOOTHNESS = 4.0, 2.0, 2.0
CORIOLIS_1_S, DENSITY_KG_M3 = 1e-4, 1.2
FIELDS = 8000


def pitch_hz(label: int) -> float:
    """Return the pitch of a class; A4 is 440 Hz, a semitone the twelfth root of 2."""
    return 440.0 * 2 ** ((label // len(INSTRUMENTS) - NAMES.index("A")) / 12)


def note(label: int, rng: np.random.Generator) -> Floats:
    """Play one note of a class. Shape (L,), within -1 and 1."""
    harmonics, rise_s, decay = list(INSTRUMENTS.values())[label % len(INSTRUMENTS)]
    frequency = pitch_hz(label) * 2 ** (rng.uniform(-DETUNE_CENTS, DETUNE_CENTS) / 1200)
    begin_s, brightness = rng.uniform(0.0, 0.04), rng.uniform(0.85, 1.15)
    time = np.arange(LENGTH) / SAMPLE_RATE_HZ - begin_s
    decay *= rng.uniform(0.8, 1.25)
    turn = 2 * np.pi * (frequency * time + rng.random())
    sound = np.zeros(LENGTH)
    for k, strength in enumerate(harmonics, 1):
        if k * frequency < SAMPLE_RATE_HZ / 2 and strength:
            falling = np.exp(-decay * k**0.7 * time.clip(0))
            sound += strength * brightness ** (k - 1) * np.sin(k * turn) * falling
    rise = np.clip(time / rise_s, 0, 1)
    fall = np.clip((LENGTH / SAMPLE_RATE_HZ - begin_s - time) / 0.08, 0, 1)
    envelope = np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2
    sound *= envelope
    return sound / np.abs(sound).max() * rng.uniform(0.5, 0.9)


def wave_numbers() -> tuple[Floats, Floats, Floats]:
    """Return wave numbers to the east and north and their length, in 1/m. Shape (H, W)."""
    line = 2 * np.pi * np.fft.fftfreq(SIDE, CELL_M)
    north, east = np.meshgrid(line, line, indexing="ij")
    return east, north, np.hypot(east, north)


def matern(length_cells: float, deviation: float) -> Floats:
    """Return the variance of each wave of a Matern field; they add up to deviation^2.

    Source: Rasmussen and Williams 2006, equation 4.15, for two dimensions.
    """
    _, _, wave = wave_numbers()
    power = (1 + (wave * length_cells * CELL_M) ** 2 / (2 * SMOOTHNESS)) ** -(SMOOTHNESS + 1)
    power[0, 0] = 0.0  # an anomaly has no mean
    return power / power.sum() * deviation**2


def slope_to_wind() -> NDArray[np.complex128]:
    """Return what turns a wave of pressure (Pa) into one of geostrophic wind (m/s)."""
    east, _, _ = wave_numbers()
    east = east.copy()
    east[:, SIDE // 2] = 0.0  # the shortest wave has no slope on this grid
    return 1j * east / (CORIOLIS_1_S * DENSITY_KG_M3)


def spectra() -> tuple[Floats, Floats, NDArray[np.complex128]]:
    """Return what is true of the fields, wave by wave.

    Returns:
        Variance of the pressure (hPa^2), of the wind (m^2/s^2), and the mean of wind times
        the conjugate of pressure. Each of shape (H, W).
    """
    pressure, own = matern(LENGTH_CELLS, PRESSURE_PA), matern(OWN_LENGTH_CELLS, WIND_M_S)
    wind = np.abs(slope_to_wind()) ** 2 * pressure + own
    return pressure / 100**2, wind, slope_to_wind() * pressure / 100


def weather(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw fields: pressure anomaly in hPa, northward wind in m/s. Shape (N, 2, H, W)."""
    noise = np.fft.fft2(rng.standard_normal((2, count, SIDE, SIDE))) / SIDE  # unit waves
    pressure = noise[0] * np.sqrt(matern(LENGTH_CELLS, PRESSURE_PA))
    wind = slope_to_wind() * pressure + noise[1] * np.sqrt(matern(OWN_LENGTH_CELLS, WIND_M_S))
    fields = np.fft.ifft2(np.stack([pressure / 100, wind], 1)).real * SIDE**2
    return fields.astype(np.float32)


def main(folder: Path) -> None:
    """Write both."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.tile(np.arange(len(CLASSES)), EACH)
    sounds = np.stack([note(int(label), rng) for label in labels])[:, None].astype(np.float16)
    np.savez(folder / "notes.npz", sounds=sounds, labels=labels, names=np.array(CLASSES))
    np.save(folder / "weather.npy", weather(FIELDS, rng))
    print(f"{len(sounds)} notes and {FIELDS} fields in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
