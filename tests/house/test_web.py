"""The page's built files belong to its sources, and its types to the API's document."""

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
from tests.serving import open_door

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"


def load_assets():
    spec = importlib.util.spec_from_file_location("assets", WEB / "assets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_built_files_belong_to_the_sources():
    assert load_assets().check() == [], "run ./dev web and commit what it writes"


def test_a_change_of_source_or_of_a_built_file_is_found(monkeypatch, tmp_path):
    assets = load_assets()
    monkeypatch.setattr(assets, "digest_sources", lambda: "0" * 64)
    assert assets.check() == ["the sources of the page changed since it was built"]
    monkeypatch.undo()
    assets = load_assets()
    monkeypatch.setattr(assets, "digest_built", lambda: {"app.js": "0" * 64})
    assert assets.check() == ["the built files of the page were changed by something else"]


def test_the_lock_names_no_host_and_no_package_by_address():
    text = (WEB / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= set(
        re.findall(r'"url": "https?://([\w.-]+)', text)  # where a package asks for donations
    )


def interfaces() -> dict[str, dict[str, tuple[str, bool]]]:
    """Return the interfaces of ``api.ts``: field -> type and whether it may be missing."""
    text = (WEB / "src" / "api.ts").read_text()
    found = {}
    for name, body in re.findall(r"export interface (\w+) \{\n(.*?)\n\}", text, re.DOTALL):
        fields = re.findall(r"^  (\w+)(\??): (.+);$", body, re.MULTILINE)
        found[name] = {field: (kind, bool(may)) for field, may, kind in fields}
    return found


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    with open_door(tmp_path_factory.mktemp("jobs")) as opened:
        yield opened


def fits(kind: str, value: object) -> bool:
    """Whether a value of JSON is what a type of TypeScript says, as far as it goes."""
    if value is None:
        return "null" in kind or kind == "Json"
    options = [part.strip() for part in kind.split("|")]
    simple = {"string": str, "number": (int, float), "boolean": bool}
    for option in options:
        if option in simple and isinstance(value, simple[option]):
            return True
        if (option.endswith("[]") or option == "Json") and isinstance(value, list):
            return True
        if option not in simple and not option.endswith("[]") and isinstance(value, dict):
            return True
    return False


def agree(kind: str, value: dict) -> None:
    for field, (wanted, may_miss) in interfaces()[kind].items():
        if field not in value:
            assert may_miss, f"{kind}.{field} is not in the answer: {sorted(value)}"
        else:
            assert fits(wanted, value[field]), f"{kind}.{field}: {wanted} is not {value[field]!r}"


def test_the_types_of_the_page_are_those_of_the_server(door):
    about = door.http.get("/v1/capabilities").json()
    agree("Capabilities", about)
    for model in about["models"]:
        agree("Model", model)
    request = {"prompt": "a", "seed": 3}
    agree("Plan", door.http.post("/v1/plan", json=request).json())
    id_ = door.http.post("/v1/jobs", json=request).json()["id"]
    door.do(door.front.jobs.wait, id_)
    (job,) = door.http.get("/v1/gallery").json()["jobs"]
    agree("Job", job)
    agree("MadeImage", job["images"][0])
    picture = door.http.get(job["images"][0]["url"]).content
    kind = {"content-type": "image/png"}
    agree("Inspected", door.http.post("/v1/inspect", content=picture, headers=kind).json())


def test_what_the_document_says_of_a_job_is_what_the_page_reads(door):
    paths = door.http.get("/openapi.json").json()["paths"]
    answer = paths["/v1/gallery"]["get"]["responses"]["200"]["content"]["application/json"]
    said = answer["schema"]["properties"]["jobs"]["items"]
    job = interfaces()["Job"]
    assert set(job) == set(said["properties"])
    assert {name for name, (_, may_miss) in job.items() if not may_miss} == set(said["required"])


def test_the_widgets_of_the_form_stand_for_fields_that_exist(door):
    known = set(door.http.get("/v1/capabilities").json()["request"]["properties"])
    sources = [WEB / "src" / "create.tsx", *(WEB / "src" / "create").glob("*.ts*")]
    text = "\n".join(path.read_text() for path in sources)
    sets = re.findall(r"const [A-Z_]+ = new Set\(\[(.*?)\]\)", text, re.DOTALL)
    named = {name for body in sets for name in re.findall(r'"(\w+)"', body)}
    assert len(named) > 10
    assert named <= known


def test_every_text_stands_in_one_file():
    """Words between tags of the sources come from words.ts, signs aside."""
    found = []
    for path in sorted((WEB / "src").rglob("*.tsx")):
        for text in re.findall(r">([^<>{}=;()\n]*[A-Za-z]{3,}[^<>{}=;()\n]*)</", path.read_text()):
            found.append(f"{path.name}: {text.strip()}")
        found += re.findall(
            r'\b(?:aria-label|title|placeholder|alt)="[^"]*[A-Za-z]{3,}[^"]*"', path.read_text()
        )
    assert found == []


LANGUAGES = ("en", "de", "zh")


def said(code: str) -> tuple[Counter, list[str]]:
    """Return the names of a language's texts, and the texts."""
    text = (WEB / "src" / "words" / f"{code}.ts").read_text()
    quoted = re.compile(r'"(?:[^"\\\n]|\\.)*"(?=\s*:)|"(?:[^"\\\n]|\\.)*"|`(?:[^`\\]|\\.)*`')
    plain = re.sub(r"\([^()]*\)", "", quoted.sub("", text))  # neither texts nor arguments
    names = Counter(re.findall(r"(\w+):", plain))
    return names, [found for found in quoted.findall(text) if len(found) > 6]


def test_every_language_says_everything():
    names, texts = zip(*(said(code) for code in LANGUAGES), strict=True)
    assert [dict(names[0] - other) for other in names[1:]] == [
        {"English": 1}
    ] * 2  # its own first line
    chinese = [text for text in texts[2] if re.search(r"[\u4e00-\u9fff]", text)]
    assert len(chinese) > 0.8 * len(texts[2])  # the rest are names: LoRA, TOML, Ctrl + K
    alike = set(texts[0]) & set(texts[1])
    assert len(alike) < 0.25 * len(set(texts[0]))


def names_in(schema: object) -> set[str]:
    """Return the name of every field in a schema, however deep."""
    if isinstance(schema, list):
        return {name for one in schema for name in names_in(one)}
    if not isinstance(schema, dict):
        return set()
    own = set(schema.get("properties", {}))
    return own.union(*(names_in(inner) for inner in schema.values()))


@pytest.mark.parametrize("language", ["de", "zh"])
def test_every_field_of_a_request_has_a_name_in_every_language(door, language):
    wanted = names_in(door.http.get("/v1/capabilities").json()["request"])
    assert len(wanted) > 60
    fields = (WEB / "src" / "words" / f"{language}.ts").read_text().partition("\n  fields: {")[2]
    named = set(re.findall(r'"?(?:\w+\.)?(\w+)"?: "', fields))
    named |= set(re.findall(r"^  (\w+): \{", (WEB / "src" / "techniques.ts").read_text(), re.M))
    assert wanted - named == set()
