"""The command line, `forelabel`. Results go to stdout as JSON, everything else to stderr.

Exit status: 0 all well; 1 some of the input could not be used, or a check failed; 2 the command itself is wrong.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from tqdm import tqdm

from backend.settings import Settings

app = typer.Typer(
    help="Looks at every image before the annotator does, and suggests its label.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
index_app = typer.Typer(help="Caption indexes, which X-MoRe retrieves from.", no_args_is_help=True)
app.add_typer(index_app, name="index")
decoder_app = typer.Typer(help="Decoders, which name images without a label set (NOVIC).", no_args_is_help=True)
app.add_typer(decoder_app, name="decoder")

Model = Annotated[str | None, typer.Option(help="'pocket', a hub name or a folder. [env: FORELABEL_MODEL]")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N. [env: FORELABEL_DEVICE]")]
Store = Annotated[str | None, typer.Option(help="redis://..., sqlite:///... [env: FORELABEL_STORE]")]
Captions = Annotated[
    str | None, typer.Option(help="Folders of caption indexes, 'default' or 'none'. [env: FORELABEL_CAPTIONS]")
]
Decoder = Annotated[
    str | None, typer.Option(help="'auto' (the bundled one), 'none' or a folder. [env: FORELABEL_DECODER]")
]
MemoryUrl = Annotated[
    str | None, typer.Option(help="Confirmed labels: redis://..., sqlite:///... [env: FORELABEL_MEMORY]")
]
StudioUrl = Annotated[str | None, typer.Option(help="Label Studio's address. [env: FORELABEL_STUDIO_URL]")]
Token = Annotated[str | None, typer.Option(help="Its access token. [env: FORELABEL_STUDIO_TOKEN]")]


class Format(StrEnum):
    jsonl = "jsonl"
    studio = "studio"


Images = Annotated[list[Path], typer.Argument(help="Image files, or folders that are searched through.")]
Top = Annotated[int, typer.Option(min=1, help="Suggestions written per image.")]
OutputFormat = Annotated[Format, typer.Option(help="One JSON object per line, or tasks for Label Studio.")]
Html = Annotated[Path | None, typer.Option(help="Also write a page with the pictures.")]


def main() -> None:
    """The entry point `forelabel`: errors that were foreseen become one line and an exit status."""
    with _one_line_errors():
        app()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from backend.evaluation import DatasetError
    from backend.memory import MemoryUnavailable
    from decoder.errors import DecoderError
    from plugin.errors import PluginError
    from retrieval.errors import RetrievalError

    try:
        yield
    except ValidationError as error:
        problems = "; ".join(f"FORELABEL_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        _fail(f"a setting is wrong: {problems}", 2)
    except (RetrievalError, DecoderError, PluginError, DatasetError, MemoryUnavailable) as error:
        _fail(str(error), 1)
    except BrokenPipeError:  # `forelabel label ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, status: int) -> None:
    typer.echo(f"forelabel: {message}", err=True)
    sys.exit(status)


def _settings(**flags: Any) -> Settings:
    """Settings from the environment, flags that were given going before. They reach child processes, too."""
    for name, value in flags.items():
        if value is not None:
            os.environ[f"FORELABEL_{name.upper()}"] = str(value)
    return Settings()


@contextmanager
def _bar(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; silent where that is no terminal."""
    with tqdm(total=total, desc=what, unit="", file=sys.stderr, disable=None) as bar:
        yield lambda n: (bar.update(n), None)[1]


@contextmanager
def _engine(settings: Settings) -> Iterator[Any]:
    from backend.engine import Engine

    with _bar("caption index") as progress:
        engine = Engine(settings, progress)
    try:
        yield engine
    finally:
        engine.close()


def _line(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")


@app.command()
def label(
    paths: Images,
    labels: Annotated[str | None, typer.Option(help="The label set, separated by commas.")] = None,
    labels_file: Annotated[Path | None, typer.Option(help="The label set, one per line.")] = None,
    captions: Captions = None,
    model: Model = None,
    device: Device = None,
    store: Store = None,
    top: Top = 5,
    format: OutputFormat = Format.jsonl,
    html: Html = None,
) -> None:
    """Suggest labels for images.

    Example: forelabel label photos/ --labels cat,dog,beach --html report.html
    """
    from backend.labelling import label_images, read_labels
    from backend.studio_tasks import label_task

    try:
        label_set = read_labels(labels, labels_file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    settings = _settings(captions=captions, model=model, device=device, store=store)
    _write_records(
        settings,
        paths,
        lambda engine, images: label_images(engine, images, label_set, top),
        lambda record: label_task(record, settings.model),
        format,
        html,
    )


@app.command()
def name(
    paths: Images,
    only: Annotated[str | None, typer.Option(help="Name with these nouns alone, separated by commas.")] = None,
    only_file: Annotated[Path | None, typer.Option(help="The same, one noun per line.")] = None,
    ban: Annotated[str | None, typer.Option(help="Never say these nouns, separated by commas.")] = None,
    decoder: Decoder = None,
    model: Model = None,
    device: Device = None,
    store: Store = None,
    top: Top = 5,
    format: OutputFormat = Format.jsonl,
    html: Html = None,
) -> None:
    """Name what is in images, without a label set.

    Example: forelabel name photos/ --ban person --html report.html
    """
    from backend.labelling import name_images, read_words
    from backend.studio_tasks import name_task

    try:
        nouns, banned = read_words(only, only_file), read_words(ban, None)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not nouns and (only is not None or only_file is not None):
        raise typer.BadParameter("the list of nouns is empty; name at least one, or leave --only out")
    settings = _settings(captions="none", decoder=decoder, model=model, device=device, store=store)
    _write_records(
        settings,
        paths,
        lambda engine, images: name_images(engine, images, top, nouns, banned),
        lambda record: name_task(record, settings.model, settings.name_threshold),
        format,
        html,
    )


def _write_records(
    settings: Settings,
    paths: list[Path],
    answer: Callable[[Any, list[Path]], Iterator[dict[str, Any]]],
    task: Callable[[dict[str, Any]], dict[str, Any]],
    format: Format,
    html: Path | None,
) -> None:
    """Write what `answer` says of the images, as it comes, or `task` makes of it; fail at the end if one could not be
    read."""
    from contextlib import nullcontext

    from backend.html_report import HtmlReport
    from backend.labelling import find_images

    images = find_images(paths)
    failed, tasks = 0, []
    with (
        _engine(settings) as engine,
        HtmlReport(html) if html else nullcontext() as report,
        _bar("images", len(images)) as progress,
    ):
        for record in answer(engine, images):
            failed += "error" in record
            if format is Format.jsonl:
                _line(record)
            else:
                tasks.append(task(record))
            if report:
                report.add(record)
            progress(1)
    if format is Format.studio:
        sys.stdout.write(json.dumps(tasks, ensure_ascii=False, indent=1) + "\n")
    if not images:
        _fail(f"no images in {', '.join(map(str, paths))}", 1)
    if failed:
        _fail(f"{failed} of {len(images)} images could not be read; their lines say why", 1)


@app.command("eval")
def evaluate_command(
    dataset: Annotated[Path, typer.Argument(help="A parquet file with a column of image files and one of labels.")],
    label_column: Annotated[str, typer.Option(help="Column with the true label.")],
    image_column: Annotated[str, typer.Option(help="Column with the image file.")] = "image",
    split: Annotated[str | None, typer.Option(help='Only rows whose column "split" says this.')] = None,
    shots: Annotated[
        str, typer.Option(help="Also after so many confirmed images of each label, as in 0,1,4: from the other rows.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="How often these are drawn.")] = 5,
    captions: Captions = None,
    model: Model = None,
    device: Device = None,
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure zero-shot, X-MoRe and re-ranking on a labelled dataset.

    Example: forelabel eval photos.parquet --label-column label --split validation --json
    """
    from backend.evaluation import evaluate

    if not all(part.strip().isdigit() for part in shots.split(",") if part.strip()):
        raise typer.BadParameter(f"--shots is {shots!r}; write numbers with commas, as in 0,1,4")
    counts = [int(part) for part in shots.split(",") if part.strip()]
    with (
        _engine(_settings(captions=captions, model=model, device=device, store=store)) as engine,
        _bar("images") as bar,
    ):
        result = evaluate(engine, dataset, label_column, image_column, split, bar, counts, seeds)
    if as_json:
        _line(result)
        return
    typer.echo(f"{result['images']} images, {result['labels']} labels, {result['captions']} captions")
    for method in ("zero_shot", "xmore"):
        typer.echo(f"{method:10} top1 {100 * result[method]['top1']:.2f} %   top5 {100 * result[method]['top5']:.2f} %")
    for count, methods in result.get("shots", {}).items():
        typer.echo(f"{count} confirmed images of each label")
        for method, scores in methods.items():
            typer.echo(f"  {method:18} top1 {100 * scores['top1']:.2f} %   top5 {100 * scores['top5']:.2f} %")


@index_app.command("build")
def index_build(
    source: Annotated[Path, typer.Argument(help=".txt .csv .tsv .jsonl .parquet, or COCO captions .json")],
    out: Annotated[Path, typer.Option(help="Folder to write; an index that is there is replaced.")],
    column: Annotated[str | None, typer.Option(help="Column or key that holds the captions.")] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Embed captions and write an index.

    Example: forelabel index build captions.csv --column caption --out captions-index
    """
    from retrieval.caption_sources import build_index, read_captions
    from retrieval.encoder import load_encoder

    settings = _settings(model=model, device=device)
    encoder = load_encoder(settings.model, settings.device)
    with _bar("captions") as progress:
        index = build_index(read_captions(source, column), encoder, str(source), progress)
    index.save(out)
    _line({"index": str(out), "captions": len(index), "encoder": encoder.name, "fingerprint": encoder.fingerprint})
    encoder.close()


@decoder_app.command("train")
def decoder_train(
    out: Annotated[Path, typer.Option(help="Folder to write; a decoder that is there is replaced.")],
    model: Model = None,
    nouns: Annotated[str, typer.Option(help="FT0 (all of the dictionary) to FT9 (the commonest).")] = "FT6",
    add_nouns: Annotated[Path | None, typer.Option(help="A file with nouns of your own, one per line.")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="Captions to learn from, too: what `index build` reads.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="An .npz file (nouns, embeddings) instead of the dictionary.")
    ] = None,
    centre: Annotated[bool, typer.Option("--centre/--raw", help="Subtract the texts' mean.")] = True,
    steps: Annotated[int, typer.Option(min=1)] = 600,
    batch: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 1024,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 1.5e-3,
    noise: Annotated[bool, typer.Option(help="Without noise a decoder is less sure of its names.")] = True,
    texts_per_noun: Annotated[int, typer.Option(min=0, help="Sentences about a noun of middling frequency.")] = 20,
    hidden: Annotated[int, typer.Option(min=1, help="Width; the paper's is 512.")] = 256,
    layers: Annotated[int, typer.Option(min=1, help="The paper's are 6.")] = 3,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    feedforward: Annotated[int, typer.Option(min=1)] = 128,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = None,
) -> None:
    """Train a decoder on texts alone. The same command goes on where it was stopped.

    Example: forelabel decoder train --model openai/clip-vit-base-patch32 --nouns FT6 --out clip-decoder
    """
    from backend.decoders import Recipe, Sizes, Texts, texts_bar, train_on_encoder, train_on_file, training_bar
    from decoder.noise import Noise
    from decoder.train import TrainOptions
    from retrieval.encoder import load_encoder

    if hidden % heads:
        raise typer.BadParameter(f"a width of {hidden} cannot be divided among {heads} heads")
    settings = _settings(model=model, device=device)
    options = TrainOptions(steps=steps, batch=batch, lr=lr, noise=Noise() if noise else None, seed=seed)
    recipe = Recipe(out, Sizes(hidden, layers, heads, feedforward), options, settings.device, centre)
    encoder = load_encoder(settings.model, settings.device) if model or not embeddings else None
    with training_bar(steps) as trained:
        if encoder and not embeddings:
            texts = Texts(nouns, add_nouns, captions, texts_per_noun, settings.data_dir / "texts")
            with texts_bar() as embedded:
                about = train_on_encoder(recipe, encoder, texts, embedded, trained)
        elif embeddings:
            about = train_on_file(recipe, embeddings, encoder, trained)
    if encoder:
        encoder.close()
    _line(about)


@decoder_app.command("import")
def decoder_import(
    file: Annotated[Path, typer.Argument(help="A .train file as NOVIC's authors publish it.")],
    out: Annotated[Path, typer.Option(help="Folder to write; a decoder that is there is replaced.")],
    model: Model = None,
    device: Device = None,
) -> None:
    """Read a published NOVIC checkpoint, check that it fits the encoder, and write it as a decoder of ours.

    Example: forelabel decoder import vitb16_ft2_ta4.train --model google/siglip-base-patch16-224 --out novic
    """
    from backend.decoders import import_novic
    from retrieval.encoder import load_encoder

    settings = _settings(model=model, device=device)
    encoder = load_encoder(settings.model, settings.device)
    _line(import_novic(file, encoder, out))
    encoder.close()


@decoder_app.command("info")
def decoder_info(folder: Annotated[Path, typer.Argument(help="A decoder's folder.")]) -> None:
    """Say what a decoder is: its sizes, its nouns, its encoder.

    Example: forelabel decoder info clip-decoder
    """
    from decoder.checkpoint import describe

    _line(describe(folder))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [env: FORELABEL_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="[env: FORELABEL_PORT]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, each with its own model.")] = None,
    model: Model = None,
    device: Device = None,
    store: Store = None,
    captions: Captions = None,
) -> None:
    """Run the ML backend that Label Studio calls.

    Example: forelabel serve --port 9090 --store redis://localhost:6379/0
    """
    import uvicorn

    flags = {"host": host, "port": port, "workers": workers, "model": model, "device": device, "store": store}
    settings = _settings(**flags, captions=captions)
    uvicorn.run(
        "backend.cli:create_service",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_level="warning",
    )


def create_service() -> Any:
    """ASGI factory; each worker process calls it once, and reads its settings from the environment."""
    from backend.app import create_app
    from backend.prelabeler import Prelabeler

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings()
    return create_app(settings, Prelabeler(settings))


@app.command()
def connect(
    studio_url: StudioUrl = None,
    token: Token = None,
    project: Annotated[int | None, typer.Option(help="Attach this project.")] = None,
    create: Annotated[
        str | None, typer.Option(help="Make a project with this title, or attach the one that has it.")
    ] = None,
    template: Annotated[str, typer.Option(help="Labeling config of a new project.")] = "image-classification",
    labels: Annotated[str, typer.Option(help="Labels of a new project, separated by commas.")] = "",
    backend_url: Annotated[
        str, typer.Option(help="This backend, as Label Studio reaches it.")
    ] = "http://localhost:9090",
) -> None:
    """Connect the backend to a Label Studio project. Run twice, it changes nothing.

    Example: forelabel connect --studio-url http://localhost:8080 --token T --create Photos --labels cat,dog
    """
    from plugin.connect import connect as connect_project

    settings = _settings(studio_url=studio_url, studio_token=token)
    connection = connect_project(
        _studio(settings),
        backend_url,
        project=project,
        create=create,
        template=template,
        labels=[part.strip() for part in labels.split(",") if part.strip()],
        basic_auth=settings.basic_auth.get_secret_value() or None,
    )
    for step in connection.steps:
        typer.echo(step, err=True)
    version = connection.model_version
    _line({"project": connection.project_id, "url": connection.project_url, "model_version": version})


@app.command()
def prelabel(
    project: Annotated[int, typer.Option(help="The project's number, as in its address.")],
    studio_url: StudioUrl = None,
    token: Token = None,
) -> None:
    """Have every task of a project pre-labelled that has no prediction yet.

    Example: forelabel prelabel --studio-url http://localhost:8080 --token T --project 1
    """
    from plugin.prelabel import prelabel as prelabel_project

    settings = _settings(studio_url=studio_url, studio_token=token)
    last = _follow(prelabel_project(_studio(settings), project), lambda state: state.asked)
    total, stored = last.total, last.stored
    _line({"project": project, "without_prediction": total, "predicted": stored, "left": total - stored})
    if stored < total:
        _fail(f"{total - stored} of {total} tasks have no prediction; the backend's log says why", 1)


@app.command()
def sync(
    project: Annotated[int, typer.Option(help="The project's number, as in its address.")],
    studio_url: StudioUrl = None,
    token: Token = None,
    memory: MemoryUrl = None,
) -> None:
    """Bring the memory of confirmed labels in line with Label Studio's own annotations, and say how it differed.

    Example: forelabel sync --studio-url http://localhost:8080 --token T --project 1
    """
    from backend.memory import open_memory
    from backend.sync import Differences, synchronise

    settings = _settings(studio_url=studio_url, studio_token=token, memory=memory)
    found = Differences(0, 0, 0, 0)
    held = open_memory(settings.memory_url)
    try:
        with _bar("annotations") as progress:
            for state in synchronise(_studio(settings), project, held):
                progress(state.annotations - found.annotations)
                found = state
    finally:
        held.close()
    _line({"project": project, **asdict(found)})


@app.command()
def refresh(
    project: Annotated[int, typer.Option(help="The project's number, as in its address.")],
    studio_url: StudioUrl = None,
    token: Token = None,
) -> None:
    """Have the suggestions of tasks that nobody has opened yet made anew, with what was confirmed since.

    Example: forelabel refresh --studio-url http://localhost:8080 --token T --project 1
    """
    from plugin.refresh import refresh as refresh_project

    settings = _settings(studio_url=studio_url, studio_token=token)
    last = _follow(refresh_project(_studio(settings), project), lambda state: state.done)
    _line({"project": project, "untouched": last.total, "replaced": last.replaced})


@app.command()
def report(
    project: Annotated[int, typer.Option(help="The project's number, as in its address.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    studio_url: StudioUrl = None,
    token: Token = None,
    memory: MemoryUrl = None,
    model: Model = None,
    device: Device = None,
    store: Store = None,
) -> None:
    """Write a page: how many suggestions were taken, what they were changed to, and likely label errors.

    Example: forelabel report --studio-url http://localhost:8080 --token T --project 1 --out report.html
    """
    from backend.project_report import report_project

    settings = _settings(
        studio_url=studio_url,
        studio_token=token,
        memory=memory,
        model=model,
        device=device,
        store=store,
        captions="none",
    )
    with _engine(settings) as engine:
        try:
            found = report_project(_studio(settings), project, engine, settings, out)
        except OSError as error:
            _fail(f"{out} cannot be written: {error.strerror or error}", 1)
    _line({"project": project, "report": str(out), **asdict(found)})


def _follow(states: Iterator[Any], done: Callable[[Any], int]) -> Any:
    """Show how far a project's tasks have come, of which each state has the `total`; the last state."""
    state = None
    with tqdm(desc="tasks", unit="", file=sys.stderr, disable=None) as bar:
        for state in states:
            bar.total = state.total
            bar.update(done(state) - bar.n)
    return state


def _studio(settings: Settings) -> Any:
    from plugin.studio import Studio

    token = settings.studio_token.get_secret_value()
    if not settings.studio_url or not token:
        raise typer.BadParameter("say where Label Studio is and how to log in: --studio-url URL --token TOKEN")
    return Studio(settings.studio_url, token)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False) -> None:
    """Say what is in force and try every part of it: device, encoder, captions, store, Label Studio.

    Example: FORELABEL_STORE=redis://localhost:6379/0 forelabel doctor
    """
    from backend.doctor import effective_settings, examine, packages

    settings = _settings()
    findings = list(examine(settings))
    if as_json:
        parts = {f.part: {"ok": f.ok, "detail": f.detail} for f in findings}
        _line({"settings": effective_settings(settings), "packages": packages(), "parts": parts})
    else:
        for name, value in (effective_settings(settings) | packages()).items():
            typer.echo(f"     {name:18} {value}")
        for f in findings:
            typer.echo(f"{'ok' if f.ok else 'FAIL':4} {f.part:18} {f.detail}")
    if not all(f.ok for f in findings):
        sys.exit(1)


@app.command()
def demo(
    photos: Annotated[Path | None, typer.Option(help="A folder with photos of your own.")] = None,
    labels: Annotated[str, typer.Option(help="The label set, separated by commas.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Verify the stored predictions, then stop.")] = False,
) -> None:
    """Start Label Studio, the backend and the store here, with two projects of pre-labelled photos.

    Example: forelabel demo --photos ~/holiday --labels cat,dog,beach
    """
    from backend.demo import run_demo

    sys.exit(run_demo(photos=photos, labels=[p.strip() for p in labels.split(",") if p.strip()], check=check))


if __name__ == "__main__":
    main()
