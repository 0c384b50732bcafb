"""base64 is decoded four characters at a time (Modules/binascii_quads.h): the results and
errors are those of going from character to character."""

import binascii
import random
import unittest

ALPHABET = b'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'


def decode(text, strict):
    """By the documented rules, one character after the other."""
    bits = length = pads = 0            # of the present group
    padded = False                      # there has been a pad
    result = bytearray()
    if strict and text.startswith(b'='):
        raise binascii.Error('Leading padding not allowed')
    for i, char in enumerate(text):
        if char == ord('='):
            padded = True
            if strict and length == 0:
                raise binascii.Error('Excess padding not allowed')
            if length >= 2:
                pads += 1
                if length + pads >= 4:
                    if strict and i + 1 < len(text):
                        raise binascii.Error('Excess data after padding')
                    return finish(result, bits, length)
            continue
        if char not in ALPHABET:
            if strict:
                raise binascii.Error('Only base64 data is allowed')
            continue
        if strict and padded:
            raise binascii.Error('Discontinuous padding not allowed')
        pads = 0
        bits = bits << 6 | ALPHABET.index(char)
        length += 1
        if length == 4:
            result += bits.to_bytes(3, 'big')
            bits = length = 0
    if length == 1:
        raise binascii.Error('Invalid base64-encoded string: number of data characters '
                             f'({len(result) // 3 * 4 + 1}) cannot be 1 more than a multiple of 4')
    if length:
        raise binascii.Error('Incorrect padding')
    return bytes(result)


def finish(result, bits, length):
    return bytes(result) + (bits << 6 * (4 - length)).to_bytes(3, 'big')[:length - 1]


def outcome(function, *args):
    try:
        return function(*args)
    except binascii.Error as exc:
        return str(exc)


class DecodeTests(unittest.TestCase):

    def check(self, text):
        for strict in False, True:
            with self.subTest(text=text, strict=strict):
                self.assertEqual(
                    outcome(lambda: binascii.a2b_base64(text, strict_mode=strict)),
                    outcome(decode, text, strict))

    def test_every_byte_in_every_place(self):
        for place in range(9):
            for char in range(256):
                text = bytearray(b'QUJDREVGRw==')
                text[place] = char
                self.check(bytes(text))

    def test_lengths_and_pads(self):
        for n in range(14):
            for before in range(4):
                for after in b'', b'Q', b'QUJD', b'\n', b'=', b'Q=':
                    self.check(b'QUJDREVGR0hJSktM'[:n] + b'=' * before + after)

    def test_random(self):
        seed = random.randrange(1 << 32)
        rnd = random.Random(seed)
        with self.subTest(seed=seed):
            for _ in range(5000):
                odd = rnd.choice((0, 0.02, 0.1, 0.4))
                text = bytes(rnd.choice(b'==\n -\xff') if rnd.random() < odd
                             else rnd.choice(ALPHABET) for _ in range(rnd.randrange(40)))
                self.check(text + b'=' * rnd.choice((0, 0, 1, 2)))

    def test_long(self):
        data = random.randbytes(100_003)
        for size in 57, len(data):
            text = b'\r\n'.join(binascii.b2a_base64(data[i:i + size], newline=False)
                                for i in range(0, len(data), size))
            self.assertEqual(binascii.a2b_base64(text), data)


if __name__ == '__main__':
    unittest.main()
