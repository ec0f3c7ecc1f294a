"""Tasks -> predictions, with the bundled model and without a server."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.prelabeler import Prelabeler
from backend.settings import Settings
from plugin.errors import LabelingConfigError
from tests.conftest import RedisProcess
from tests.retrieval.tiny_models import encoded, photo

CONFIG = (
    '<View><Image name="img" value="$image"/><Choices name="what" toName="img"><Choice value="cat"/>'
    '<Choice value="dog" alias="D"/><Choice value="BT" hint="bell tower"/></Choices></View>'
)
TWO = (
    '<View><Image name="one" value="$a"/><Image name="two" value="$b"/>'
    '<Choices name="x" toName="one" choice="multiple"><Choice value="cat"/><Choice value="dog"/></Choices>'
    '<Choices name="y" toName="two"><Choice value="red"/><Choice value="blue"/></Choices></View>'
)


def uri(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(photo(64, 48, seed))).decode()


def task(number: int, **data: Any) -> dict[str, Any]:
    return {"id": number, "data": data}


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(data_dir=tmp_path / "data", captions="none", **changes)


@pytest.fixture(scope="module")
def prelabeler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prelabeler]:
    made = Prelabeler(settings(tmp_path_factory.mktemp("prelabeler")))
    made.start()
    yield made
    made.close()


def test_setup_answers_while_the_model_loads(tmp_path: Path) -> None:
    made = Prelabeler(settings(tmp_path))
    started = time.monotonic()
    version = made.setup("1.0", CONFIG, "", "")
    assert time.monotonic() - started < 1 and not made.ready
    assert version == made.model_version and version.startswith("forelabel-") and version.endswith("-pocket")
    made.start()
    (item,) = made.predict([task(1, image=uri(1))], project="1.0", label_config=CONFIG)
    assert item["model_version"] == version  # type: ignore[call-overload]
    made.close()


def test_one_prediction_per_task_in_order(prelabeler: Prelabeler) -> None:
    items: list[Any] = prelabeler.predict([task(n, image=uri(n)) for n in range(5)], project="1", label_config=CONFIG)
    assert len(items) == 5
    for item in items:
        (region,) = item["result"]
        assert (region["from_name"], region["to_name"], region["type"]) == ("what", "img", "choices")
        assert len(region["value"]["choices"]) == 1 and set(region["value"]["choices"]) <= {"cat", "D", "BT"}
        assert 0 <= item["score"] <= 1 and item["score"] == region["score"]
    again: list[Any] = prelabeler.predict([task(3, image=uri(3))], project="2", label_config=CONFIG)
    assert again[0] == items[3]


@pytest.mark.parametrize(
    "value",
    ["data:image/png;base64,!!!", "http://169.254.169.254/x.png", "/data/local-files/?d=../../etc/passwd", "", None, 7],
)
def test_one_unreadable_image_harms_no_other(value: Any, prelabeler: Prelabeler) -> None:
    tasks = [task(1, image=uri(1)), task(2, image=value), {"id": 3}, {"id": 4, "data": None}, task(5, image=uri(5))]
    items: list[Any] = prelabeler.predict(tasks, project="1", label_config=CONFIG)
    assert [bool(item) for item in items] == [True, False, False, False, True]


def test_two_images_two_questions(prelabeler: Prelabeler) -> None:
    items: list[Any] = prelabeler.predict(
        [task(1, a=uri(1), b=uri(2)), task(2, a=uri(1), b="data:,x"), task(3)], project="1", label_config=TWO
    )
    assert [r["from_name"] for r in items[0]["result"]] == ["x", "y"]
    assert [r["from_name"] for r in items[1]["result"]] == ["x"]
    assert items[2] == []
    assert items[0]["score"] == min(r["score"] for r in items[0]["result"])


def test_projects_do_not_mix(prelabeler: Prelabeler) -> None:
    other = CONFIG.replace("cat", "horse").replace("D", "H")
    for _ in range(2):
        for config, allowed in ((CONFIG, {"cat", "D", "BT"}), (other, {"horse", "H", "BT"})):
            items: list[Any] = prelabeler.predict([task(1, image=uri(1))], project="1", label_config=config)
            assert set(items[0]["result"][0]["value"]["choices"]) <= allowed


def test_two_thousand_tasks(prelabeler: Prelabeler) -> None:
    items = prelabeler.predict([task(n, image=uri(n % 7)) for n in range(2000)], project="1", label_config=CONFIG)
    assert len(items) == 2000 and all(items)


def test_deadline_returns_what_is_done(prelabeler: Prelabeler) -> None:
    tasks = [task(n, image=uri(1000 + n)) for n in range(200)]
    past = time.monotonic() - 1
    assert prelabeler.predict(tasks, project="1", label_config=CONFIG, deadline=past) == [[]] * 200
    assert all(prelabeler.predict(tasks, project="1", label_config=CONFIG))
    assert all(prelabeler.predict(tasks[:3], project="1", label_config=CONFIG, deadline=time.monotonic() + 30))


@pytest.mark.parametrize("config", ["", "<View/>", "<View", CONFIG.replace("Choice value", "X value")])
def test_unusable_config_says_so(config: str, prelabeler: Prelabeler) -> None:
    with pytest.raises(LabelingConfigError):
        prelabeler.setup("1", config, "", "")
    with pytest.raises(LabelingConfigError):
        prelabeler.predict([task(1, image=uri(1))], project="1", label_config=config)


def test_no_tasks(prelabeler: Prelabeler) -> None:
    assert prelabeler.predict([], project="1", label_config=CONFIG) == []


def test_a_model_that_cannot_be_loaded_leaves_empty_answers(tmp_path: Path) -> None:
    made = Prelabeler(settings(tmp_path, model=str(tmp_path / "nothing")))
    made.start()
    assert made.setup("1", CONFIG, "", "")
    assert made.predict([task(1, image=uri(1))], project="1", label_config=CONFIG) == [[]]
    assert not made.ready
    made.close()


def test_redis_stopped_in_the_middle(tmp_path: Path, stoppable_redis: RedisProcess) -> None:
    made = Prelabeler(settings(tmp_path, store=stoppable_redis.url))
    made.start()
    tasks = [task(n, image=uri(n)) for n in range(90)]
    before: list[Any] = made.predict(tasks[:40], project="1", label_config=CONFIG)
    stoppable_redis.stop()
    during: list[Any] = made.predict(tasks, project="1", label_config=CONFIG)
    assert len(during) == 90 and all(during)
    for now, then in zip(during[:40], before, strict=True):  # embedded anew, in other batches: equal but for rounding
        assert now["score"] == pytest.approx(then["score"], abs=1e-3)
    stoppable_redis.start()
    assert all(made.predict(tasks, project="1", label_config=CONFIG))
    made.close()


OPEN = (
    '<View><Image name="img" value="$image"/><Choices name="what" toName="img"><Choice value="cat"/></Choices>'
    '<Taxonomy name="names" toName="img" legacy="true"/><TextArea name="lines" toName="img"/>'
    '<Choices name="best" toName="img" value="$options"/></View>'
)


@pytest.fixture(scope="module")
def naming(small_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prelabeler]:
    made = Prelabeler(settings(tmp_path_factory.mktemp("naming"), decoder=str(small_decoder), name_threshold=0.0))
    made.start()
    yield made
    made.close()


def answers(item: Any) -> dict[str, Any]:
    return {region["from_name"]: next(iter(region["value"].values())) for region in item["result"]}


def test_a_label_set_and_open_questions_from_one_embedding(naming: Prelabeler) -> None:
    items = naming.predict([task(1, image=uri(1)), task(2, image="nowhere")], project="1", label_config=OPEN)
    found = answers(items[0])
    assert found["what"] == ["cat"]
    assert len(found["lines"]) == 5 and found["names"] == [[noun] for noun in found["lines"]]
    assert found["best"] == found["lines"][:1]
    assert items[1] == []


def test_names_are_held_to_a_list_or_kept_from_some(naming: Prelabeler) -> None:
    def names(params: object, project: str = "1") -> set[str]:
        (item,) = naming.predict([task(1, image=uri(1))], project=project, label_config=OPEN, params=params)
        return set(answers(item)["lines"])

    assert names({"nouns": ["teapot", " dog "]}) == {"teapot", "dog"}
    assert names({"nouns": ["teapot", "dog"], "ban": ["Dog"]}) == {"teapot"}
    assert "cat" not in names({"ban": ["cat", "dog"]})
    everything = names({"login": None, "password": None, "context": None})
    assert everything == names(None) == names("no JSON") == names({"nouns": "cat"})
    naming.setup("7.0", OPEN, "", "", '{"nouns": ["banana"]}')
    assert names(None, "7.0") == {"banana"}
    assert names({"nouns": ["cat"]}, "7.0") == {"cat"}  # what a request says goes before
    assert names(None) == everything


def test_without_a_decoder_what_has_a_label_set_is_answered_all_the_same(
    prelabeler: Prelabeler, tmp_path: Path
) -> None:
    made = Prelabeler(settings(tmp_path, decoder="none"))
    made.start()
    (item,) = made.predict([task(1, image=uri(1))], project="1", label_config=OPEN)
    assert answers(item) == {"what": ["cat"]}
    only_open = '<View><Image name="i" value="$image"/><TextArea name="t" toName="i"/></View>'
    with pytest.raises(LabelingConfigError, match="FORELABEL_DECODER"):
        made.setup("2", only_open, "", "")
    made.close()


def test_nouns_that_the_decoder_cannot_say_cost_the_names_alone(naming: Prelabeler) -> None:
    asked = {"nouns": ["qzxv"]}
    (item,) = naming.predict([task(1, image=uri(1))], project="1", label_config=OPEN, params=asked)
    assert answers(item) == {"what": ["cat"]}
