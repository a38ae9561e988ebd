"""A checkpoint at full size, once: the peer's own numbers against those of ``vlakern.load``.

    python python_tests/models/weights/full_size.py [--dtype fp32|bf16] FAMILY WORK [LIBS [SOURCE]]

FAMILY is pi0, pi05, smolvla or beingh; LIBS and SOURCE are those of make_golden_*.py. Draws the
weights of a directory in WORK, in bf16 (fp32 runs read the same file: both dtypes begin from the
same numbers), runs the peer and vlakern's CPU engine in fp32 and bf16, each in a process of its
own, and writes golden/full_size/FAMILY.json: distances in every stage, times and memory; and
FAMILY.npz: a part of the peer's numbers. Without LIBS vlakern alone is compared with that part and
nothing is written. With --dtype vlakern runs in that dtype alone; the other's results stay.
WORK needs 22 GB, fp32 about 12 GB of memory for pi0 and pi0.5.
"""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import make_golden_beingh as beingh
import make_golden_pi as pi
import make_golden_smolvla as smolvla
import numpy as np
import torch
from goldens import GOLDEN, ONES, drawn, read_names
from peers import lerobot
from safetensors import safe_open

import vlakern
from vlakern.infer.engine import Engine
from vlakern.models.sequence import pack
from vlakern.models.weights.golden import STAGES, distance, document_of
from vlakern.types import Observation

OUT = GOLDEN / "full_size"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
POOL = 8_388_593  # a prime: rows of a tensor begin at ever new places of the pool
WORDS = 1024  # of the table; the prompts hold no later one, so the peer's fp32 table ends there
FOLDER = {"pi0": "lerobot_pi0", "pi05": "lerobot_pi05", "smolvla": "lerobot_smolvla"}
WIDTHS = {"pi0": (8, 7), "pi05": (8, 7), "smolvla": (6, 6)}
SIDE = {"pi0": 224, "pi05": 224, "smolvla": 512, "beingh": 224}


def shapes_of(family: str) -> dict[str, tuple[int, ...]]:
    """As saved: tied words once."""
    shapes = read_names(GOLDEN / f"{family}_full.json")
    if family in ("pi0", "pi05"):
        del shapes["paligemma_with_expert.paligemma.lm_head.weight"]
    return shapes


def weight(name: str, shape: tuple[int, ...], pool: torch.Tensor, family: str) -> torch.Tensor:
    """Bf16 numbers that follow from the name; products and embeddings of unit gain."""
    ones = beingh.ONES if family == "beingh" else ONES[family]
    count, middle, most = math.prod(shape), 0.0, 1.0
    if "embed_tokens" in name:
        most = math.sqrt(3.0) if family == "beingh" else math.sqrt(3.0 / shape[1])
    elif len(shape) > 1 and ("position_embedding" not in name and "class_embedding" not in name):
        most = math.sqrt(3.0 / math.prod(shape[1:]))
    elif name.endswith("bias"):
        most = 0.1
    elif len(shape) == 1:
        middle, most = (1.0 if any(part in name for part in ones) else 0.0), 0.3
    begin = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") % POOL
    out = torch.empty(count, dtype=torch.bfloat16)
    filled = 0
    while filled < count:
        part = pool[begin : begin + count - filled]
        out[filled : filled + len(part)] = middle + most * part
        filled, begin = filled + len(part), 0
    return out.view(shape)


def write_directory(family: str, directory: Path) -> None:
    """A checkpoint directory, its tensors one after the other."""
    directory.mkdir(parents=True)
    prefix = "" if family == "beingh" else "model."
    header, at = {}, 0
    for name, shape in shapes_of(family).items():
        size = 2 * math.prod(shape)
        offsets = [at, at + size]
        header[prefix + name] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pool = drawn("pool", (POOL,))
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes_of(family).items():
            made = weight(name, shape, pool, family)
            file.write(made.flatten().view(torch.uint8).numpy().data)
    shutil.copy(GOLDEN / "processing/tokenizer.json", directory)
    (directory / "config.json").write_text(json.dumps(settings(family)))
    if family in FOLDER:
        for path in (GOLDEN / "processing" / FOLDER[family]).iterdir():
            shutil.copy(path, directory)


def settings(family: str) -> dict[str, Any]:
    """What config.json says."""
    if family == "beingh":
        llm = {**beingh.FULL["llm"], "expert_config": beingh.FULL["expert"]}
        llm |= {"rope_theta": 1000000, "rms_norm_eps": 1e-6}
        vit = {**beingh.FULL["vision"], "layer_norm_eps": 1e-6}
        values = {"model_type": "beingh", "llm_config": llm, "vit_config": vit}
        values |= {"template": "being_h0", "select_layer": -1}
        return values | {"force_image_size": 224, "use_flow_matching": True}
    side, (state, action) = SIDE[family], WIDTHS[family]
    image = {"type": "VISUAL", "shape": [3, 48, 64]}
    views = {f"observation.images.{name}": image for name in ("top", "wrist")}
    steps = "num_steps" if family == "smolvla" else "num_inference_steps"
    key = "resize_imgs_with_padding" if family == "smolvla" else "image_resolution"
    return {
        "type": family,
        "input_features": {**views, "observation.state": {"type": "STATE", "shape": [state]}},
        "output_features": {"action": {"type": "ACTION", "shape": [action]}},
        "chunk_size": 50,
        "n_action_steps": 50,
        "max_state_dim": 32,
        "max_action_dim": 32,
        steps: 10,
        "min_period": 4e-3,
        "max_period": 4.0,
        key: [side, side],
    }


def build(family: str, dtype: str, libs: Path, source: Path | None) -> Any:
    """The peer's network of full size, on the meta device."""
    if family == "beingh":
        assert source is not None
        made = beingh.release(libs, source)
        line = torch.linspace
        torch.linspace = lambda *args: line(*args, device="cpu")  # of which numbers are asked
        with torch.device("meta"):
            network = beingh.build(made, beingh.FULL)
        torch.linspace = line
        return network.to(DTYPES[dtype])
    with torch.device("meta"):
        if family == "smolvla":
            smolvla.CHUNK = 50
            return smolvla.build(libs, smolvla.FULL, 16, 32, 32).to(DTYPES[dtype])
        made = lerobot(libs, f"policies.{family}.modeling_{family}")
        name = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
        return pi.build(made, pi.FAMILIES[family], name, 224, 50, 32, 32)


def load_peer(family: str, dtype: str, directory: Path, libs: Path, source: Path | None) -> Any:
    """The same with the directory's weights: mapped where they are bf16, else copied."""
    network = build(family, dtype, libs, source)
    wanted = {name: one.dtype for name, one in network.state_dict().items()}
    prefix = "" if family == "beingh" else "model."
    with safe_open(directory / "model.safetensors", "pt") as file:
        named = {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    short = {}
    for name, kind in wanted.items():
        if "embed_tokens" in name or "lm_head" in name:
            short[name] = kind
            named.setdefault(name, torch.empty(0, dtype=torch.bfloat16))
            if not named[name].numel():  # tied
                words = next(one for one in named if "language_model.embed_tokens" in one)
                named[name] = named[words]
            continue
        named[name] = named[name].to(kind)
    network.load_state_dict(named, assign=True)
    for name, kind in short.items():
        module = network.get_submodule(name.rpartition(".")[0])
        module.weight = torch.nn.Parameter(module.weight[:WORDS].to(kind), requires_grad=False)
    for module in network.modules():
        materialise(module)
    left = [n for n, one in [*network.named_buffers(), *network.named_parameters()] if one.is_meta]
    assert not left, left
    return network.eval()


def materialise(module: Any) -> None:
    """Buffers that no file holds, as the module's own constructor makes them."""
    for name, one in list(module.named_buffers(recurse=False)):
        if not one.is_meta:
            continue
        if name == "position_ids":
            module.position_ids = torch.arange(one.shape[-1]).expand(one.shape)
        elif name == "embed_scale":
            module.embed_scale = torch.tensor(module.scalar_embed_scale)
        else:
            fresh = type(module)(config=module.config)
            module.register_buffer(name, getattr(fresh, name), persistent=False)


def run_peer(family: str, dtype: str, work: Path, libs: Path, source: Path | None) -> None:
    """Every stage, through the same code that makes the reduced goldens."""
    network = load_peer(family, dtype, work / family, libs, source)
    if family == "beingh":
        beingh.REDUCED = {**beingh.FULL, "llm": {**beingh.FULL["llm"], "vocab_size": WORDS}}
        found = beingh.stages(network)
    elif family == "smolvla":
        text = {**smolvla.FULL["text"], "vocab_size": WORDS}
        smolvla.REDUCED, smolvla.STATE, smolvla.ACTION = {**smolvla.FULL, "text": text}, 32, 32
        found = smolvla.stages(network)
    else:
        pi.VOCABULARY, pi.IMAGE, pi.CHUNK, pi.STATE, pi.ACTION = WORDS, 224, 50, 32, 32
        found = pi.stages(network, has_state=family == "pi0")
    save(work / f"{family}_peer_{dtype}.npz", found)


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def part(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Some numbers of every stage, and what was given but for the images, which follow from it."""
    keep = {k: v for k, v in found.items() if k not in (*STAGES, "images")}
    vision, rows = found["vision"], found["keys"].shape[1]
    keep["vision"] = vision[:, :: vision.shape[1] // 4, ::16]
    for name in ("keys", "values"):
        keep[name] = found[name][:, :: max(rows // 4, 1), :, ::8]
    return keep | {name: found[name] for name in ("velocity", "chunk")}


def run_ours(family: str, dtype: str, work: Path, given: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our stages, and what loading took: with packing if the directory holds no packed weights."""
    begin, watch = time.perf_counter(), Anonymous()
    policy = vlakern.load(work / family, "cpu", dtype)
    loaded, resident = time.perf_counter() - begin, peak()
    width = policy.robot.state_width
    image = np.full((48, 64, 3), 100, np.uint8)
    seen = Observation(dict.fromkeys(policy.views[:2], image), np.zeros(width, np.float32), "go")
    policy.act(seen, seed=0)
    facts = {"load_s": loaded, "peak_after_load": resident, "peak_after_act": peak()}
    facts["anonymous_peak"] = watch.stop()
    config = policy._records.config
    side = SIDE[family]
    images = drawn("images", (2, side, side, 3), 0.0, 255.9).to(torch.uint8)
    parts = given.get("parts", np.array([0, len(given["tokens"])]))
    doc = document_of(given["tokens"], parts, 2)
    if config.state == "words":
        doc = tuple(one for one in doc if one.kind != "state")
    state = torch.zeros(1, config.state_dim)
    state[0] = torch.from_numpy(given["state"])
    pixels = images.permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0
    batch = pack(config, [doc], pixels, state)
    out: dict[str, Any] = {}
    taus = given["taus"]
    for steps in (16, config.steps):
        engine = Engine(
            policy._model, max_views=2, max_prefix=int(batch.cu_prefix[-1]), steps=steps
        )
        prefix = engine.prefill(batch)
        if steps == config.steps:
            noise = torch.from_numpy(given["noise"])[None]
            out["chunk"] = engine.integrate(prefix, noise)[0].numpy()
            break
        native: Any = engine._stages
        x, index = torch.from_numpy(given["x"])[None], torch.zeros(1, dtype=torch.int32)
        made = [native.velocity(x, prefix.kv, prefix.cu, index, int(t * steps)) for t in taus]
        out["velocity"] = torch.cat(made).numpy()
        kv = prefix.kv.float().unflatten(-1, (config.mot.kv_heads, -1)).numpy()
        out["keys"], out["values"] = kv[:, 0].copy(), kv[:, 1].copy()
        out["vision"] = engine.vision(2).view(2, -1, config.mot.semantic.hidden).numpy().copy()
    return {"found": out, "facts": facts}


def peak(what: str = "VmHWM:") -> int:
    """The largest resident memory of this process so far [byte], mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


class Anonymous(threading.Thread):
    """The largest memory that no file is behind [byte], looked at 50 times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._most, self._end = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._end.wait(0.02):
            self._most = max(self._most, peak("RssAnon:"))

    def stop(self) -> int:
        self._end.set()
        self.join()
        return self._most


def compare(family: str, dtype: str, work: Path) -> None:
    """Writes one dtype's distances to WORK."""
    known, whole = work / f"{family}_peer_fp32.npz", True
    if not known.exists():
        known, whole = OUT / f"{family}.npz", False
    with np.load(known, allow_pickle=False) as file:
        expected = {name: file[name] for name in file.files}
    made = run_ours(family, dtype, work, expected)
    found, facts = made["found"], made["facts"]
    rows = expected["keys"].shape[1]
    if whole:
        found["keys"], found["values"] = found["keys"][:, :rows], found["values"][:, :rows]
    else:
        last = int(expected["prefix_rows"])
        found["keys"], found["values"] = found["keys"][:, :last], found["values"][:, :last]
        found = part(found)
    result = dict(facts)
    result["distance"] = {stage: distance(found[stage], expected[stage]) for stage in STAGES}
    pairs = zip(found["keys"], expected["keys"], strict=True)
    result["worst_layer_keys"] = max(distance(a, b) for a, b in pairs)
    pairs = zip(found["values"], expected["values"], strict=True)
    result["worst_layer_values"] = max(distance(a, b) for a, b in pairs)
    other = work / f"{family}_peer_bf16.npz"
    if dtype == "bf16" and whole and other.exists():
        with np.load(other, allow_pickle=False) as file:
            gap = {stage: distance(file[stage], expected[stage]) for stage in STAGES}
        result["peer_gap"] = gap
    elif dtype == "bf16":
        gap = stored(family).get("bf16", {}).get("peer_gap")
        result |= {} if gap is None else {"peer_gap": gap}
    (work / f"{family}_{dtype}.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


def stored(family: str) -> dict[str, Any]:
    """The results of the last run with a peer."""
    path = OUT / f"{family}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def child(*words: object) -> None:
    subprocess.run([sys.executable, __file__, *map(str, words)], check=True)


def main(family: str, work: Path, libs: Path | None, source: Path | None, only: str | None) -> None:
    OUT.mkdir(exist_ok=True)
    if not (work / family).exists():
        write_directory(family, work / family)
    first, wanted = {}, tuple(DTYPES) if only is None else (only,)
    for dtype in DTYPES:
        if libs is not None and not (work / f"{family}_peer_{dtype}.npz").exists():
            child("--peer", dtype, family, work, libs, *([source] if source else []))
        if dtype not in wanted:
            continue
        child("--ours", dtype, family, work)
        if dtype == "bf16":  # once more, with the packed weights that are there now
            first = json.loads((work / f"{family}_bf16.json").read_text())
            child("--ours", dtype, family, work)
        shutil.rmtree(work / family / "packed", ignore_errors=True)
    results = {dtype: one for dtype, one in stored(family).items() if dtype in DTYPES}
    for dtype in wanted:
        results[dtype] = json.loads((work / f"{family}_{dtype}.json").read_text())
    if first:
        results["bf16"]["first_load_s"] = first["load_s"]
        results["bf16"]["first_peak_after_load"] = first["peak_after_load"]
        results["bf16"]["first_anonymous_peak"] = first["anonymous_peak"]
    results["checkpoint_bytes"] = (work / family / "model.safetensors").stat().st_size
    results |= {"views": 2, "torch": torch.__version__}
    if libs is not None:
        with np.load(work / f"{family}_peer_fp32.npz", allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        save(OUT / f"{family}.npz", part(found) | {"prefix_rows": np.array(len(found["keys"][0]))})
        (OUT / f"{family}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    bf16 = results.get("bf16", {})
    for stage, gap in bf16.get("peer_gap", {}).items():
        print(f"{stage} in bf16: {bf16['distance'][stage]:.2e} off, the peer {gap:.2e}")


def read_words(words: list[str]) -> tuple[str, Path, Path | None, Path | None, str | None]:
    """What the command line says; ends the program with a sentence about what it lacks."""
    given, only = words, None
    if words[:1] == ["--dtype"]:
        only, words = " ".join(words[1:2]), words[2:]
    family = "".join(words[:1])
    if not 2 <= len(words) <= 4 or family not in SIDE or only not in (None, *DTYPES):
        raise SystemExit(f"found {given}, expected [--dtype fp32|bf16] FAMILY WORK [LIBS [SOURCE]]")
    libs, source = [*map(Path, words[2:]), None, None][:2]
    script = f"make_golden_{'pi' if family in ('pi0', 'pi05') else family}.py"
    if libs is None and not (OUT / f"{family}.npz").exists():
        raise SystemExit(f"nothing of the peer of {family} is stored; give LIBS, see {script}")
    if libs is not None and not (libs / "transformers").is_dir():
        raise SystemExit(f"{libs} lacks the peer's packages; install them as {script} says")
    if libs is not None and family == "beingh" and not (source and (source / "BeingH").is_dir()):
        raise SystemExit(
            f"SOURCE is {source}, expected the peer's release; clone it as {script} says"
        )
    return family, Path(words[1]), libs, source, only


if __name__ == "__main__":
    args = sys.argv[1:]
    if args[:1] == ["--peer"]:
        source = Path(args[5]) if len(args) > 5 else None
        run_peer(args[2], args[1], Path(args[3]), Path(args[4]), source)
    elif args[:1] == ["--ours"]:
        compare(args[2], args[1], Path(args[3]))
    else:
        main(*read_words(args))
