"""Places: backgrounds painted with a random generator, each a different view of the same kind of place.

A place has a sky, a far and a near part; `paint` combines them, from one place or from several. Does not depend on
subjects or captions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sdcli.training import scenery, views
from sdcli.training.clay import CLASS_NAMES, CLASSES, Canvas, Colour, Stops, dimmed

__all__ = ["BACKGROUNDS", "CLASSES", "CLASS_NAMES", "PLACES", "TIMED_PLACES", "TIMES", "mixed", "paint", "parts_of"]

Rng = np.random.Generator
TIMES = ("day", "night", "sunset")
LIGHTS: Mapping[str, Colour] = {"day": (1, 1, 1), "night": (0.34, 0.41, 0.68), "sunset": (1.0, 0.74, 0.64)}
NIGHT_SKY: Stops = ((9, 12, 44), (22, 29, 82), (48, 54, 118), (84, 84, 150))
SUNSET_SKY: Stops = ((88, 62, 140), (206, 92, 122), (255, 152, 96), (255, 214, 150))


@dataclass(frozen=True)
class Place:
    """The parts of a place.

    `sky`: the colours by day from the top to the horizon; then the painters of the air, the far part and the ground.
    `timed`: whether it can be night or sunset there. `above`: the class of the sky.
    """

    sky: Stops
    air: Callable[[Canvas, Rng], None]
    far: Callable[[Canvas, Rng], None]
    ground: Callable[[Canvas, Rng], None]
    timed: bool = True
    above: str = "sky"


BLUE_SKY: Stops = ((74, 158, 242), (132, 198, 250), (206, 234, 252))
PLACES: Mapping[str, Place] = {
    "snow": Place(
        ((112, 172, 228), (176, 212, 242), (226, 238, 250)), scenery.nothing, views.snow_far, views.snow_ground
    ),
    "beach": Place(
        ((66, 164, 244), (138, 208, 250), (220, 242, 250)), scenery.sun_and_clouds, views.beach_far, views.beach_ground
    ),
    "forest": Place(
        ((150, 214, 196), (196, 232, 206), (226, 244, 216)), scenery.nothing, views.forest_far, views.forest_ground
    ),
    "desert": Place(
        ((116, 186, 236), (206, 222, 222), (255, 226, 178)), scenery.sun, views.desert_far, views.desert_ground
    ),
    "meadow": Place(BLUE_SKY, scenery.clouds, views.meadow_far, views.meadow_ground),
    "city": Place(
        ((126, 186, 240), (196, 222, 244), (248, 236, 222)), scenery.clouds, views.city_far, views.city_ground
    ),
    "underwater": Place(
        ((120, 224, 240), (40, 156, 214), (14, 92, 172), (10, 66, 138)),
        views.underwater_air,
        views.underwater_far,
        views.underwater_ground,
        timed=False,
        above="water",
    ),
    "mountains": Place(
        ((58, 136, 230), (124, 186, 246), (206, 230, 250)), scenery.clouds, views.mountains_far, views.mountains_ground
    ),
    "space": Place(
        ((8, 6, 28), (24, 14, 60), (54, 30, 104)), views.space_air, views.space_far, views.space_ground, timed=False
    ),
    "autumn": Place(
        ((176, 212, 238), (230, 230, 218), (252, 236, 202)), scenery.nothing, views.autumn_far, views.autumn_ground
    ),
    "night": Place(NIGHT_SKY, scenery.moonlit, views.night_far, views.night_ground, timed=False),
    "sunset": Place(SUNSET_SKY, scenery.low_sun, views.sunset_far, views.sunset_ground, timed=False),
    "room": Place(
        ((250, 226, 200), (226, 204, 180)),
        views.room_air,
        scenery.nothing,
        views.room_ground,
        timed=False,
        above="wall",
    ),
    "village": Place(BLUE_SKY, scenery.clouds, views.village_far, views.village_ground),
    "farm": Place(
        ((104, 178, 246), (166, 214, 250), (240, 240, 224)), scenery.sun_and_clouds, views.farm_far, views.farm_ground
    ),
}
TIMED_PLACES = tuple(name for name, place in PLACES.items() if place.timed)
"""Places with other times of day."""
BACKGROUNDS: Mapping[str, Stops] = {
    "white background": ((250, 250, 252), (255, 255, 255), (236, 236, 242)),
    "grey background": ((150, 154, 164), (176, 180, 188), (146, 150, 160)),
    "black background": ((26, 27, 34), (46, 48, 58), (30, 31, 40)),
    "red background": ((206, 40, 50), (232, 66, 70), (196, 36, 48)),
    "blue background": ((70, 136, 228), (108, 172, 250), (76, 142, 230)),
    "green background": ((70, 164, 96), (112, 200, 128), (72, 162, 98)),
    "yellow background": ((250, 204, 70), (255, 226, 118), (244, 196, 66)),
    "orange background": ((244, 138, 52), (255, 172, 92), (236, 130, 50)),
    "pink background": ((248, 158, 194), (255, 192, 216), (240, 150, 188)),
    "purple background": ((134, 92, 206), (168, 128, 236), (128, 88, 200)),
}


def mixed(sky: str, far: str, ground: str) -> str:
    """Return the name of a place made of the parts of three."""
    return f"{sky}/{far}/{ground}"


def parts_of(place: str) -> tuple[str, str, str]:
    """Return the places that the sky, the far part and the ground of a place come from."""
    sky, *others = place.split("/")
    far, ground = others or (sky, sky)
    return sky, far, ground


def studio(canvas: Canvas, stops: Stops) -> None:
    """Paint a backdrop of one colour, rounded between wall and floor, with a pool of light."""
    canvas.fill((stops[0], stops[1], stops[1], stops[2]), "wall")
    canvas.glow(0.5, 0.45, 0.4, dimmed(stops[1], 1.06), 0.7)


def paint_sky(canvas: Canvas, place: Place, rng: Rng, time: str) -> None:
    """Paint the sky of a place at a time of day, down to the horizon."""
    air = {"day": place.air, "night": scenery.moonlit, "sunset": scenery.low_sun}[time]
    stops = {"day": place.sky, "night": NIGHT_SKY, "sunset": SUNSET_SKY}[time]
    canvas.haze = np.array(stops[-1], np.float32)
    canvas.fill(stops, place.above, 1.0 if place.above == "water" else 0.68)
    air(canvas, rng)


def paint(place: str, rng: Rng, size: int, time: str = "day") -> tuple[np.ndarray, np.ndarray]:
    """Paint a view of a place of `PLACES` or `BACKGROUNDS`, or of a `mixed` one.

    Returns the picture, uint8 (size, size, 3), and its class indices, uint8 (size, size).
    """
    canvas = Canvas(size, LIGHTS[time])
    if place in BACKGROUNDS:
        studio(canvas, BACKGROUNDS[place])
    else:
        sky, far, ground = (PLACES[part] for part in parts_of(place))
        paint_sky(canvas, sky, rng, time)
        far.far(canvas, rng)
        ground.ground(canvas, rng)
    canvas.stage()
    return canvas.result()
