from itertools import islice

import numpy as np
from PIL import Image

from sdcli.training.judge import Answers, Judge, Segmenter
from sdcli.training.measure import (
    compare_maps,
    drawer,
    inpaint_trials,
    judged,
    measure_semantic,
    measure_text,
    spread,
    text_trials,
    trial_of,
    trial_of_two,
)
from sdcli.training.world import KIT, compose, compose_row, is_held_out, render, scenes
from tests.training.test_judge import Oracle


def test_a_trial_asks_in_plain_words_for_what_is_judged():
    assert trial_of(("owl", "natural", "snow")).prompt == "an owl in the snow"
    two = trial_of_two(("castle", "natural", "sunset"), ("dragon", "red", "night"))
    assert two.prompt == "a castle left of a red dragon at sunset"
    assert two.answers == Answers(place="sunset", left="castle", right="dragon")


def test_trials_are_many_distinct_and_of_what_they_say():
    kinds = text_trials(KIT, 500, 200)
    assert [len(kinds[kind]) for kind in ("seen", "held_out")] == [500, 200]
    for kind, held_out in (("seen", False), ("held_out", True)):
        answers = [trial.answers for trial in kinds[kind]]
        assert all(is_held_out(a.subject, a.colour, a.place) is held_out for a in answers)
        assert {a.subject for a in answers} == set(KIT.subjects)
        assert {a.place for a in answers} == set(KIT.places)
        assert len(set(answers)) == len(answers)
    assert len(kinds["two_subjects"]) > 80
    assert all(trial.answers.left != trial.answers.right for trial in kinds["two_subjects"])


def test_spread_repeats_where_there_are_fewer():
    assert spread([1, 2], 5) == [1, 2, 1, 2, 1]
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]


def test_pictures_are_drawn_with_a_seed_each_and_judged():
    trials = [trial_of(("fox", "red", "snow")), trial_of(("cat", "red", "snow"))]
    asked = []

    def draw(wanted, given):
        asked.append((wanted["prompt"], wanted["seed"], given))
        return np.zeros((256, 256, 3), dtype=np.uint8)

    shares = judged(Oracle([Answers("fox", "red", "snow")] * 2), draw, trials)
    assert asked == [("a red fox in the snow", 0, None), ("a red cat in the snow", 1, None)]
    assert shares == {"subject": 0.5, "colour": 1.0, "place": 1.0, "all": 0.5}


def test_an_inpainting_trial_hides_a_subject_and_asks_for_another(sprites):
    for prompt, answers, given in inpaint_trials(sprites, KIT, 4):
        mask = np.asarray(given.core) > 0
        assert 0.05 < mask.mean() < 0.7
        assert answers.subject in prompt
        assert answers.place is None
        assert given.image.size == (256, 256)


def test_a_semantic_model_is_given_the_maps_of_scenes_and_judged_by_them(sprites):
    class Perfect:
        """Draws each scene itself, told apart by its seed."""

        def __init__(self):
            source = (s for s in scenes(112_233, KIT) if len(s.placements) == 1 and s.time == "day")
            self.scenes = list(islice((s for s in source if s.place in KIT.places), 3))

        def __call__(self, wanted, given):
            rendering = render(self.scenes[wanted["seed"]], sprites)
            assert np.array_equal(np.asarray(Image.open(wanted["segmentation_map"])), rendering.segmentation)
            assert self.scenes[wanted["seed"]].placements[0].subject in wanted["prompt"]
            return rendering.image

    judge, segmenter = Judge().eval(), Segmenter().eval()
    table = measure_semantic(Perfect(), judge, segmenter, sprites, count=3)
    assert set(table) == {"pictures", "mean_iou", "subject", "colour", "place", "all"}
    assert 0 <= table["mean_iou"] < 0.5


def test_maps_read_back_from_renderings_are_compared_with_their_own(sprites):
    rng = np.random.default_rng(3)
    rendering = render(compose(("fox", "red", "snow"), rng), sprites)
    mean, table = compare_maps(Segmenter().eval(), [rendering.image], [rendering.segmentation])
    assert 0 <= mean < 0.5
    assert "animal" in table


def test_the_drawer_draws_what_the_command_draws(tmp_path, run):
    options = {"steps": 2, "threads": 1, "device": "cpu"}
    drawn = drawer("kit", options)({"prompt": "arctic fox", "seed": 7}, None)
    run("generate", "arctic fox", "--seed", "7", "--steps", "2", "--threads", "1", "-o", "fox.png")
    assert np.array_equal(drawn, np.asarray(Image.open(tmp_path / "fox.png")))


def test_the_table_has_a_row_a_kind(sprites):
    class Blind:
        def __call__(self, wanted, given):
            return render(
                compose_row([("fox", "red"), ("owl", "red")], "snow", np.random.default_rng(1)), sprites
            ).image

    table = measure_text(Blind(), Judge().eval(), seen=10, held_out=5)
    assert table["seen"]["pictures"] == 10
    assert set(table["two_subjects"]) == {"pictures", "place", "left", "right", "order"}
    assert set(table["subject_alone"]) == {"pictures", "subject", "colour"}
