import numpy as np

from annotator.class_colors import ADE20K, COCO, class_colors, class_names


def test_every_class_has_a_name_and_a_colour():
    for dataset, count in ((ADE20K, 150), (COCO, 133)):
        assert class_colors(dataset).shape == (count, 3)
        assert class_colors(dataset).dtype == np.uint8
        assert len(class_names(dataset)) == count


def test_colours_tell_classes_apart_but_road_and_skyscraper():
    colours, numbers = np.unique(class_colors(COCO), axis=0, return_counts=True)
    assert (numbers == 1).all()
    colours, numbers = np.unique(class_colors(ADE20K), axis=0, return_counts=True)
    shared = colours[numbers > 1]
    names = [
        name
        for name, colour in zip(class_names(ADE20K), class_colors(ADE20K), strict=True)
        if (colour == shared).all(axis=1).any()
    ]
    assert names == ["road, route", "skyscraper"]


def test_known_classes_have_their_published_colours():
    ade = dict(zip(class_names(ADE20K), class_colors(ADE20K).tolist(), strict=True))
    coco = dict(zip(class_names(COCO), class_colors(COCO).tolist(), strict=True))
    assert ade["wall"] == [120, 120, 120]
    assert ade["person"] == [150, 5, 61]
    assert coco["person"] == [220, 20, 60]
    assert coco["rug-merged"] == [250, 141, 255]
