// The laboratory's arithmetic: denoisers that are exact, levels, solvers. Everything in double
// precision. The rules are those of the library (sampling/rules.py, sigma_curves.py, mixtures.py);
// tests/system/test_server_lab.py holds the numbers against it.
//
// Data are a mixture of three Gaussians in the plane, so the best estimate of the clean point
// given a noisy one is a formula, and so is the guided one. What differs from the exact path is
// a solver's own error.

export type Point = [number, number];
export type Denoise = (x: Point, sigma: number) => Point;

export const MEANS: Point[] = [[1, 0], [-0.5, 0.9], [-0.5, -0.9]];
export const SPREAD = 0.25;
export const SIGMA_MIN = 0.002;
export const SIGMA_MAX = 10;

/** The mean of clean points given a noisy one; every component as wide as the others. */
export function posterior(x: Point, sigma: number, spread: number): Point {
  const variance = spread * spread + sigma * sigma;
  const logits = MEANS.map(([mx, my]) => -((x[0] - mx) ** 2 + (x[1] - my) ** 2) / (2 * variance));
  const top = Math.max(...logits);
  const weights = logits.map((l) => Math.exp(l - top));
  const all = weights.reduce((a, b) => a + b, 0);
  const gain = (spread * spread) / variance;
  const out: Point = [0, 0];
  MEANS.forEach(([mx, my], k) => {
    const share = weights[k]! / all;
    out[0] += share * (mx + gain * (x[0] - mx));
    out[1] += share * (my + gain * (x[1] - my));
  });
  return out;
}

/** Tight blobs, steered away from blobs twice as wide, as classifier-free guidance steers. */
export function guided(scale: number): Denoise {
  return (x, sigma) => {
    const wanted = posterior(x, sigma, SPREAD);
    if (scale === 1) return wanted;
    const without = posterior(x, sigma, 2 * SPREAD);
    return [without[0] + scale * (wanted[0] - without[0]), without[1] + scale * (wanted[1] - without[1])];
  };
}

// --- noise levels -----------------------------------------------------------------------------

export const CURVES = ["karras", "exponential", "linear"] as const;
export type Curve = (typeof CURVES)[number];

/** Levels of n steps and the final 0. `rho` bends the curve of Karras et al. (equation 5). */
export function levels(curve: Curve, n: number, rho = 7): number[] {
  const ramp = Array.from({ length: n }, (_, k) => (n > 1 ? k / (n - 1) : 0));
  const of: Record<Curve, (part: number) => number> = {
    karras: (part) => (SIGMA_MAX ** (1 / rho) + part * (SIGMA_MIN ** (1 / rho) - SIGMA_MAX ** (1 / rho))) ** rho,
    exponential: (part) => Math.exp(Math.log(SIGMA_MAX) + part * (Math.log(SIGMA_MIN) - Math.log(SIGMA_MAX))),
    linear: (part) => SIGMA_MAX + part * (SIGMA_MIN - SIGMA_MAX),
  };
  return [...ramp.map(of[curve]), 0];
}

// --- solvers ----------------------------------------------------------------------------------

export interface Run { path: Point[]; calls: number } // the path has one more point than steps
type Draw = () => number; // standard normal
export type Solver = (x: Point, sigmas: number[], denoise: Denoise, draw: Draw) => Run;

const mix = (a: number, x: Point, b: number, y: Point): Point => [a * x[0] + b * y[0], a * x[1] + b * y[1]];

const euler: Solver = (x, sigmas, denoise) => {
  const path = [x];
  for (let k = 0; k + 1 < sigmas.length; k += 1) {
    const ratio = sigmas[k + 1]! / sigmas[k]!;
    x = mix(ratio, x, 1 - ratio, denoise(x, sigmas[k]!));
    path.push(x);
  }
  return { path, calls: sigmas.length - 1 };
};

/** Karras et al. 2022, algorithm 1. */
const heun: Solver = (x, sigmas, denoise) => {
  const path = [x];
  let calls = 0;
  for (let k = 0; k + 1 < sigmas.length; k += 1) {
    const [here, there] = [sigmas[k]!, sigmas[k + 1]!];
    const d = denoise(x, here);
    calls += 1;
    const slope: Point = [(x[0] - d[0]) / here, (x[1] - d[1]) / here];
    const next: Point = [x[0] + (there - here) * slope[0], x[1] + (there - here) * slope[1]];
    if (there > 0) {
      const e = denoise(next, there);
      calls += 1;
      const half = (there - here) / 2;
      x = [x[0] + half * (slope[0] + (next[0] - e[0]) / there), x[1] + half * (slope[1] + (next[1] - e[1]) / there)];
    } else x = next;
    path.push(x);
  }
  return { path, calls };
};

/** How far a step reaches in log-SNR, in units of the one before. */
function reach(sigmas: number[], k: number): number {
  return Math.log(sigmas[k]! / sigmas[k + 1]!) / Math.log(sigmas[k - 1]! / sigmas[k]!);
}

/** DPM-Solver++(2M), midpoint (arXiv:2211.01095, algorithm 2); with noise its SDE of appendix B. */
const multistep = (isSde: boolean): Solver => (x, sigmas, denoise, draw) => {
  const path = [x];
  let before: Point = [0, 0];
  for (let k = 0; k + 1 < sigmas.length; k += 1) {
    const ratio = sigmas[k + 1]! / sigmas[k]!;
    const keep = isSde ? ratio * ratio : ratio;
    const drop = 1 - keep;
    const weight = k === 0 || sigmas[k + 1] === 0 ? 0 : 0.5 * drop * reach(sigmas, k);
    const d = denoise(x, sigmas[k]!);
    const noise = isSde ? sigmas[k + 1]! * Math.sqrt(drop) : 0;
    const drawn: Point = isSde ? [draw(), draw()] : [0, 0];
    x = [
      keep * x[0] + (drop + weight) * d[0] - weight * before[0] + noise * drawn[0],
      keep * x[1] + (drop + weight) * d[1] - weight * before[1] + noise * drawn[1],
    ];
    before = d;
    path.push(x);
  }
  return { path, calls: sigmas.length - 1 };
};

const ancestral: Solver = (x, sigmas, denoise, draw) => {
  const path = [x];
  for (let k = 0; k + 1 < sigmas.length; k += 1) {
    const [here, there] = [sigmas[k]!, sigmas[k + 1]!];
    const up = Math.sqrt((there ** 2 * (here ** 2 - there ** 2)) / here ** 2);
    const down = Math.sqrt(Math.max(there ** 2 - up ** 2, 0));
    const d = denoise(x, here);
    x = mix(down / here, x, 1 - down / here, d);
    x = [x[0] + up * draw(), x[1] + up * draw()];
    path.push(x);
  }
  return { path, calls: sigmas.length - 1 };
};

export const SOLVERS: Record<string, { run: Solver; draws: boolean }> = {
  euler: { run: euler, draws: false },
  heun: { run: heun, draws: false },
  dpmpp_2m: { run: multistep(false), draws: false },
  euler_ancestral: { run: ancestral, draws: true },
  dpmpp_sde: { run: multistep(true), draws: true },
};

// --- runs -------------------------------------------------------------------------------------

const GOLDEN = Math.PI * (3 - Math.sqrt(5));

/** Points spread as noise of the highest level is: quantiles of its radius along a golden spiral. */
export function starts(count: number): Point[] {
  return Array.from({ length: count }, (_, k) => {
    const radius = SIGMA_MAX * Math.sqrt(-2 * Math.log(1 - (k + 0.5) / count));
    return [radius * Math.cos(k * GOLDEN), radius * Math.sin(k * GOLDEN)];
  });
}

/** Normal numbers that are the same for the same seed (mulberry32, Box and Muller). */
export function normal(seed: number): Draw {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

const EXACT_STEPS = 400;
const exact = new Map<string, Run[]>();

/** The exact paths: Heun in steps so small that its error is far below any that is drawn. */
export function exactPaths(scale: number, count: number): Run[] {
  const key = `${scale}/${count}`;
  let found = exact.get(key);
  if (!found) {
    const sigmas = levels("karras", EXACT_STEPS);
    found = starts(count).map((x) => heun(x, sigmas, guided(scale), () => 0));
    if (exact.size > 40) exact.clear();
    exact.set(key, found);
  }
  return found;
}

export function runAll(name: string, scale: number, sigmas: number[], count: number): Run[] {
  const denoise = guided(scale);
  return starts(count).map((x, k) => SOLVERS[name]!.run(x, sigmas, denoise, normal(1000 + k)));
}

/** Root mean square distance between the ends of two sets of paths. */
export function distance(runs: Run[], others: Run[]): number {
  const sum = runs.reduce((all, run, k) => {
    const [a, b] = [run.path.at(-1)!, others[k]!.path.at(-1)!];
    return all + (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2;
  }, 0);
  return Math.sqrt(sum / runs.length);
}

export const COUNTS = [3, 4, 5, 6, 8, 10, 12, 16, 20, 26, 34, 44, 60, 80];

/** Error against calls of the denoiser, over many step counts. */
export function errorCurve(name: string, scale: number, curve: Curve, rho: number, count: number): { steps: number; calls: number; error: number }[] {
  const truth = exactPaths(scale, count);
  return COUNTS.map((steps) => {
    const runs = runAll(name, scale, levels(curve, steps, rho), count);
    return { steps, calls: runs[0]!.calls, error: distance(runs, truth) };
  });
}
