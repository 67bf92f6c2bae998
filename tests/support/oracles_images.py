"""Operations on one image in float64, pixel by pixel, from their definitions."""

import colorsys
import math

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])


def box(shape, top, bottom, left, right):
    """Return the pixels of a box, as bools of shape (height, width)."""
    inside = np.zeros(shape, bool)
    inside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return inside


def cutout_boxes(height, width, size):
    """Return the box around each pixel, in the order of the pixels."""
    half = size // 2
    return np.stack(
        [
            box((height, width), i - half, i - half + size, j - half, j - half + size)
            for i in range(height)
            for j in range(width)
        ]
    )


def affine(image, matrix, method, fill):
    """Return the image whose pixel at p is the input's at A p + b, from the center."""
    height, width = image.shape[:2]
    out = np.full(image.shape, float(fill))
    for i in range(height):
        for j in range(width):
            y, x = i - (height - 1) / 2, j - (width - 1) / 2
            row, column = matrix @ np.array([y, x, 1.0])
            row, column = row + (height - 1) / 2, column + (width - 1) / 2
            if -0.5 <= row < height - 0.5 and -0.5 <= column < width - 0.5:
                out[i, j] = _sample(image, row, column, method)
    return out


def _sample(image, row, column, method):
    if method == "nearest":
        return image[math.floor(row + 0.5), math.floor(column + 0.5)]
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            weight = (1 - abs(row - i)) * (1 - abs(column - j))
            total = total + weight * _nearest_pixel(image, i, j)
    return total


def _nearest_pixel(image, i, j):
    height, width = image.shape[:2]
    return image[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]


def moved(degrees, scale, shear, vertical_shear):
    """Return the matrix of random_affine, by which points of a picture move."""
    angle, across, up = np.deg2rad([degrees, shear, vertical_shear])
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    upwards = [[1, -np.tan(up)], [0, 1]]
    to_the_left = [[1, 0], [-np.tan(across), 1]]
    return scale * np.array(turn) @ upwards @ to_the_left


def rotation(degrees):
    """Return the matrix that finds what a counter-clockwise turn brings to a pixel."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, s, 0], [-s, c, 0]])


def gray(image):
    return image @ LUMA if image.shape[-1] == 3 else image.mean(-1)


def brightness(image, factor):
    return np.clip(factor * image, 0, 1)


def contrast(image, factor):
    return np.clip(factor * image + (1 - factor) * gray(image).mean(), 0, 1)


def saturation(image, factor):
    return np.clip(factor * image + (1 - factor) * gray(image)[..., None], 0, 1)


def hue(image, turns):
    out = np.empty_like(image)
    for index in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*image[index])
        out[index] = colorsys.hsv_to_rgb((h + turns) % 1.0, s, v)
    return out


def sharpness(image, factor):
    smooth = image.copy()
    kernel = np.ones((3, 3))
    kernel[1, 1] = 5
    for i in range(1, image.shape[0] - 1):
        for j in range(1, image.shape[1] - 1):
            window = image[i - 1 : i + 2, j - 1 : j + 2]
            smooth[i, j] = np.tensordot(kernel / 13, window, 2)
    return np.clip(factor * image + (1 - factor) * smooth, 0, 1)


def mixed(x, order, weight):
    """Return weight x + (1 - weight) x[order], a weight per example."""
    x = np.asarray(x, np.float64)
    weight = np.reshape(weight, (-1,) + (1,) * (x.ndim - 1))
    return weight * x + (1 - weight) * x[order]
