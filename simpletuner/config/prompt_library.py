"""The built-in library of validation prompts: twenty kinds of picture, to see what a model keeps and what it forgets.

Each asks for something that can be judged at a glance: a count, a place, a colour, a material, hands, words, light.
"""

from __future__ import annotations

from collections.abc import Mapping

LIBRARY: Mapping[str, str] = {
    "portrait": "a portrait of an old fisherman with a grey beard and a knitted cap, soft window light, photograph",
    "two_people": "a girl in a yellow raincoat hands a red apple to a boy in a blue jumper, in a park",
    "hands": "the hands of a potter shaping a bowl of wet clay on a turning wheel, close-up photograph",
    "animal": "a fox asleep in the snow, its tail over its nose, early morning light",
    "animals_counted": "three white ducks in a row on a pond, seen from the side",
    "left_and_right": "a green teapot to the left of a pile of old books, on a wooden table",
    "above_and_below": "a black cat lying on a shelf above a sleeping brown dog",
    "landscape": "a wide valley between steep mountains after rain, low clouds, a river in the middle",
    "city": "a narrow street of a harbour town at dusk, lamps reflected in wet cobblestones",
    "interior": "a small kitchen with blue tiles, copper pans on the wall and sunlight on the floor",
    "food": "a loaf of dark bread cut open beside a bowl of tomato soup, seen from above",
    "glass": "a glass of water on a windowsill with a lemon slice in it, backlit, sharp caustics",
    "vehicle": "an old red tractor in a field of sunflowers under a clear sky",
    "words": "a wooden sign at a garden gate that reads OPEN in white letters",
    "night": "a lighthouse at night in a storm, its beam across dark waves",
    "watercolour": "a watercolour painting of a sailing boat in a calm bay, loose brush strokes, white paper",
    "line_drawing": "a line drawing of a bicycle in black ink on plain white paper",
    "flat_poster": "a flat poster of a rocket over a city, five colours, simple shapes",
    "pattern": "a seamless pattern of blue leaves and small orange birds on cream",
    "impossible": "a whale made of clouds floating over a desert, tiny camels below",
}
