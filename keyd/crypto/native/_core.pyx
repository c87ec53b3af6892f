# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=True, auto_pickle=False
# cython: embedsignature=False
"""What Python sees of the native layer: key handles, and card tasks in batches.

A `KeyHandle` owns one key in locked memory and frees it when it goes. A `CardKernel` takes a tick's tasks, as the
domain wrote them, and computes them together. Every length is checked, here or in card.c, before C computes; Python
objects that C reads are held until it is done; while a key is pinned no Python runs.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport getenv

from typing import NamedTuple

from keyd.errors import (
    BadParameter,
    CardNotAuthentic,
    KeyNotFound,
    MacNotAuthentic,
    Refusal,
    TacNotAuthentic,
    TooLarge,
)


cdef extern from "sys/resource.h" nogil:
    ctypedef unsigned long rlim_t
    struct rlimit:
        rlim_t rlim_cur
    int RLIMIT_MEMLOCK
    int getrlimit(int resource, rlimit *limits)


cdef extern from "sm4.h" nogil:
    ctypedef struct sm4_path:
        const char *name
        int lanes
        int (*is_supported)() noexcept
    const sm4_path *sm4_paths[]
    const sm4_path *sm4_current()
    int sm4_select(const char *name)


cdef extern from "arena.h" nogil:
    size_t ARENA_DEFAULT_BYTES
    ctypedef uint64_t arena_handle
    ctypedef enum arena_status:
        ARENA_OK
        ARENA_GONE
        ARENA_FULL
        ARENA_CORRUPT
        ARENA_NOT_LOCKED
        ARENA_NO_MEMORY
        ARENA_IS_OPEN
        ARENA_BAD_SIZE
        ARENA_NO_RANDOM
    ctypedef enum arena_algorithm:
        ARENA_SM4
        ARENA_TDES
        ARENA_DES
    ctypedef struct arena_cell:
        uint32_t algorithm
    ctypedef struct arena_counters:
        int is_open
        uintptr_t address
        size_t bytes
        size_t cell_bytes
        size_t used
        size_t capacity
    arena_status arena_open(size_t bytes)
    arena_status arena_take(arena_algorithm algorithm, const uint8_t *key, arena_handle *handle)
    arena_status arena_free(arena_handle handle)
    arena_status arena_pin(arena_handle handle, const arena_cell **cell)
    void arena_unpin(const arena_cell *cell)
    void arena_wipe_all()
    arena_counters arena_count()
    void arena_wipe(void *memory, size_t bytes)
    size_t arena_key_bytes(arena_algorithm algorithm)


cdef extern from "key.h" nogil:
    size_t key_block_bytes(arena_algorithm algorithm)
    void key_encrypt(const arena_cell *cell, const uint8_t *data, uint8_t *out, size_t length)
    arena_status key_decrypt(const arena_cell *cell, const uint8_t *data, uint8_t *out, size_t length)
    void key_cbc_mac(const arena_cell *cell, const uint8_t *iv, const uint8_t *data, size_t length, uint8_t *mac)
    arena_status key_encrypt_to_key(
        const arena_cell *cell, const uint8_t *data, arena_algorithm algorithm, arena_handle *made)
    arena_status key_decrypt_to_key(
        const arena_cell *cell, const uint8_t *data, arena_algorithm algorithm, arena_handle *made)
    arena_status key_xor_halves(const arena_cell *cell, arena_handle *made)
    enum:
        KEY_MAX_AROUND
    arena_status key_left_half(const arena_cell *cell, arena_handle *made)
    arena_status key_decrypt_key_within(
        const arena_cell *cell, const uint8_t *data, size_t length, size_t offset, arena_algorithm algorithm,
        uint8_t *around, arena_handle *made)
    arena_status key_generate(arena_algorithm algorithm, arena_handle *made)
    arena_status key_xor(const arena_cell *cell, const arena_cell *other, arena_handle *made, int *is_weak)
    void key_encrypt_key(const arena_cell *cell, const arena_cell *key, uint8_t *out)


cdef extern from "gcm.h" nogil:
    enum:
        GCM_NONCE_BYTES
        GCM_TAG_BYTES
        GCM_MAX_BYTES
    ctypedef enum gcm_verdict:
        GCM_AUTHENTIC
        GCM_NOT_AUTHENTIC
    arena_status gcm_seal(
        const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
        const uint8_t *data, size_t length, uint8_t *out)
    arena_status gcm_open(
        const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
        const uint8_t *sealed, size_t length, uint8_t *out, gcm_verdict *verdict)
    arena_status gcm_wrap(
        const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
        const arena_cell *key, uint8_t *out)
    arena_status gcm_unwrap(
        const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
        const uint8_t *wrapped, arena_algorithm algorithm, arena_handle *made, gcm_verdict *verdict)


cdef extern from "shamir.h" nogil:
    enum:
        SHAMIR_SHARE_BYTES
        SHAMIR_MAX_SHARES
    arena_status shamir_split(const arena_cell *cell, size_t threshold, size_t count, uint8_t *const *shares)
    arena_status shamir_combine(
        arena_algorithm algorithm, const uint8_t *numbers, const uint8_t *const *shares, size_t n,
        arena_handle *made)


cdef extern from "card.h" nogil:
    enum:
        CARD_DIVERSIFIER_BYTES
        CARD_CRYPTOGRAM_BYTES
        CARD_MAX_PROTECTED_DATA
    ctypedef enum card_kind:
        CARD_CRYPTOGRAM
        CARD_MAC
        CARD_PROTECT
        CARD_PROTECT_ENCIPHERED
        CARD_TAC
    ctypedef enum card_result:
        CARD_DONE
        CARD_KEY_GONE
        CARD_KEY_CORRUPT
        CARD_DIVERSIFIER_LENGTH
        CARD_SESSION_FACTOR_LENGTH
        CARD_CHALLENGE_LENGTH
        CARD_HEADER_LENGTH
        CARD_DATA_TOO_LARGE
        CARD_ENCIPHERED_TOO_LARGE
        CARD_PRESENTED_LENGTH
        CARD_NOT_AUTHENTIC
    ctypedef struct card_bytes:
        const uint8_t *at
        size_t length
    ctypedef struct card_task:
        arena_handle city
        arena_algorithm algorithm
        card_kind kind
        card_bytes diversifier
        card_bytes session_factor
        card_bytes header
        card_bytes data
        uint8_t *out
        size_t out_length
        const card_bytes *presented
        card_result result
    void card_measure(card_task *task)
    size_t card_work(const card_task *task)
    void card_compute(card_task *tasks, size_t n)
    arena_status card_diversify(arena_handle handle, const uint8_t *diversifier, arena_handle *made)


SM4 = <int>ARENA_SM4
TDES = <int>ARENA_TDES
DES = <int>ARENA_DES

DEFAULT_ARENA_BYTES = ARENA_DEFAULT_BYTES

MAX_SEALED_BYTES = <int>GCM_MAX_BYTES
MAX_SHARES = <int>SHAMIR_MAX_SHARES

cdef dict _NAMES = {ARENA_SM4: "SM4", ARENA_TDES: "3DES", ARENA_DES: "DES"}

# In blocks of SM4, 5 to 30 ns each: from some 50 µs on, letting other threads run is worth the switch. Below, a
# thread that keeps the GIL for its 5 ms would cost the tick a hundred times what it gained.
cdef enum:
    _RELEASE_WORK = 5000
    # A DES block takes as long as this many in SM4's lanes.
    _DES_WORK = 20
    # So does a block that is encrypted and hashed, or a multiplication in GF(2^128).
    _GCM_WORK = 12


class KeyMemoryError(Exception):
    """Locked key memory cannot do what it was asked."""


class KeyMemoryNotLocked(KeyMemoryError):
    """The operating system does not let keyd lock the memory for its keys."""


class KeyMemoryFull(KeyMemoryError):
    """There is no room for another key."""


class KeyMemoryCorrupt(KeyMemoryError):
    """Something wrote over the edge of a key's cell: a bug in native code, or a fault in memory."""


class KeyGone(KeyMemoryError):
    """The key was freed or wiped, or belongs to the process that forked this one."""


class KeyNotAuthentic(Exception):
    """What was wrapped or sealed does not open: it was altered, or the key is another."""


class KeyWeak(Exception):
    """The key would be all zero, one of DES's weak and semi-weak keys, or a 3DES key with such or equal halves."""


class ArenaInfo(NamedTuple):
    """The arena's counters: keys held and room for how many, bytes locked, and where the first cell is."""

    used: int
    capacity: int
    locked_bytes: int
    cell_bytes: int
    address: int


cdef int _require(arena_status status, size_t size = ARENA_DEFAULT_BYTES) except -1:
    """Raise what a status other than OK means; size is what the arena was to have."""
    cdef rlimit limits
    if status == ARENA_OK:
        return 0
    if status == ARENA_GONE:
        raise KeyGone("the key was freed or wiped, or belongs to the process that forked this one")
    if status == ARENA_FULL:
        raise KeyMemoryFull(f"key memory is full: {arena_count().capacity} keys")
    if status == ARENA_CORRUPT:
        raise KeyMemoryCorrupt("a key's cell was overwritten; the key is wiped and its cell not used again")
    if status == ARENA_NOT_LOCKED:
        getrlimit(RLIMIT_MEMLOCK, &limits)
        raise KeyMemoryNotLocked(
            f"keyd locks {size // 1024} KiB of memory for its keys, and may lock {limits.rlim_cur // 1024} KiB "
            "(RLIMIT_MEMLOCK). Raise the limit: LimitMEMLOCK= in the systemd unit, ulimit -l in a shell"
        )
    if status == ARENA_IS_OPEN:
        raise KeyMemoryError("key memory is open already, with another size")
    if status == ARENA_BAD_SIZE:
        raise KeyMemoryError("key memory has room for 1 to 65536 keys beside its scratch regions")
    if status == ARENA_NO_RANDOM:
        raise KeyMemoryError("the kernel gave no random bytes")
    raise KeyMemoryError("the operating system gave no memory for keys")


cdef arena_algorithm _algorithm(int number) except *:
    if number not in _NAMES:
        raise ValueError("an algorithm is SM4, TDES or DES")
    return <arena_algorithm>number


cdef KeyHandle _owned(arena_algorithm algorithm, arena_handle handle):
    cdef KeyHandle key = KeyHandle.__new__(KeyHandle)
    key.algorithm = algorithm
    key._handle = handle
    return key


@cython.final
cdef class KeyHandle:
    """A key in locked memory: what it can do, and never its bytes. It is freed when the last reference goes."""

    cdef readonly int algorithm
    cdef arena_handle _handle
    cdef object __weakref__

    def __init__(self):
        raise TypeError("keys are loaded, unwrapped, or made by other keys or at random")

    def __dealloc__(self):
        # What was freed or wiped before, or is the parent process's, is refused; there is nothing to do then.
        arena_free(self._handle)

    @property
    def number(self):
        """What C names the key by, with its generation; it says nothing of the key and outlives it harmlessly."""
        return self._handle

    def free(self):
        """Wipe the key now.

        Raises:
            KeyGone: it was freed or wiped before.
        """
        _require(arena_free(self._handle))

    def encrypt(self, bytes blocks not None):
        """Encrypt whole blocks, each on its own (ECB)."""
        return self._blocks(blocks, False)

    def decrypt(self, bytes blocks not None):
        """Decrypt whole blocks, each on its own (ECB)."""
        return self._blocks(blocks, True)

    def cbc_mac(self, bytes blocks not None, bytes iv not None):
        """Return the last block of a CBC encryption. The caller has padded and will truncate or fold."""
        cdef size_t size = key_block_bytes(<arena_algorithm>self.algorithm)
        cdef size_t length = self._require_whole_blocks(blocks)
        cdef const arena_cell *cell
        if <size_t>PyBytes_GET_SIZE(iv) != size:
            raise ValueError(f"an initial value has {size} bytes")
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(iv)
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(blocks)
        cdef bytes mac = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(mac)
        _require(arena_pin(self._handle, &cell))
        if self._work(length) < _RELEASE_WORK:
            key_cbc_mac(cell, start, data, length, out)
            arena_unpin(cell)
        else:
            with nogil:
                key_cbc_mac(cell, start, data, length, out)
                arena_unpin(cell)
        return mac

    def encrypt_to_key(self, bytes blocks not None, int algorithm):
        """Encrypt whole blocks and keep the ciphertext as a key of that algorithm."""
        cdef arena_algorithm made_algorithm = _algorithm(algorithm)
        cdef size_t length = self._require_whole_blocks(blocks)
        cdef const arena_cell *cell
        cdef arena_handle made
        if length != arena_key_bytes(made_algorithm):
            raise ValueError(f"a {_NAMES[algorithm]} key has {arena_key_bytes(made_algorithm)} bytes")
        _require(arena_pin(self._handle, &cell))
        cdef arena_status status = key_encrypt_to_key(
            cell, <const uint8_t *>PyBytes_AS_STRING(blocks), made_algorithm, &made)
        arena_unpin(cell)
        _require(status)
        return _owned(made_algorithm, made)

    def diversify(self, bytes diversifier not None):
        """Diversify one level down, to a key of the same algorithm. A diversifier has 8 bytes."""
        cdef arena_handle made
        if PyBytes_GET_SIZE(diversifier) != CARD_DIVERSIFIER_BYTES:
            raise BadParameter("a diversifier has 8 bytes")
        _require(card_diversify(self._handle, <const uint8_t *>PyBytes_AS_STRING(diversifier), &made))
        return _owned(<arena_algorithm>self.algorithm, made)

    def xor_halves(self):
        """Return left half XOR right half of a 3DES key, as a DES key."""
        cdef const arena_cell *cell
        cdef arena_handle made
        if self.algorithm != ARENA_TDES:
            raise ValueError("only a 3DES key has two halves")
        _require(arena_pin(self._handle, &cell))
        cdef arena_status status = key_xor_halves(cell, &made)
        arena_unpin(cell)
        _require(status)
        return _owned(ARENA_DES, made)

    def left_half(self):
        """Return the left half of a 3DES key, as a DES key."""
        cdef const arena_cell *cell
        cdef arena_handle made
        if self.algorithm != ARENA_TDES:
            raise ValueError("only a 3DES key has two halves")
        _require(arena_pin(self._handle, &cell))
        cdef arena_status status = key_left_half(cell, &made)
        arena_unpin(cell)
        _require(status)
        return _owned(ARENA_DES, made)

    def xor(self, KeyHandle other not None):
        """Return this key XOR another of the same algorithm: how components make a key.

        Raises:
            ValueError: the keys are of different algorithms.
            KeyWeak: it would be a key that `generate` never makes; equal components cancel, for instance.
        """
        cdef const arena_cell *cell
        cdef const arena_cell *second
        cdef arena_handle made
        cdef int is_weak = 0
        if self.algorithm != other.algorithm:
            raise ValueError("components are of one algorithm")
        _require(arena_pin(self._handle, &cell))
        cdef arena_status status = arena_pin(other._handle, &second)
        if status == ARENA_OK:
            status = key_xor(cell, second, &made, &is_weak)
            arena_unpin(second)
        arena_unpin(cell)
        _require(status)
        if is_weak:
            raise KeyWeak("these components make a weak key: are two of them the same?")
        return _owned(<arena_algorithm>self.algorithm, made)

    def kcv(self):
        """Return the key check value: the first 3 bytes of a zero block encrypted. It may be shown."""
        return self.encrypt(bytes(key_block_bytes(<arena_algorithm>self.algorithm)))[:3]

    def wrap_ecb(self, KeyHandle key not None):
        """Return another key's bytes, each block encrypted on its own (ECB), under this SM4 or 3DES key.

        Raises:
            ValueError: this is a DES key, or the other key is no whole number of blocks.
        """
        cdef const arena_cell *cell
        cdef const arena_cell *other
        cdef size_t length = self._require_transport(<arena_algorithm>key.algorithm)
        cdef bytes ciphertext = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        _require(arena_pin(self._handle, &cell))
        cdef arena_status status = arena_pin(key._handle, &other)
        if status == ARENA_OK:
            key_encrypt_key(cell, other, <uint8_t *>PyBytes_AS_STRING(ciphertext))
            arena_unpin(other)
        arena_unpin(cell)
        _require(status)
        return ciphertext

    def unwrap_ecb(self, bytes ciphertext not None, int algorithm):
        """Decrypt what `wrap_ecb` made into locked memory. Any bytes of the right length become a key.

        Raises:
            ValueError: this is a DES key, the ciphertext has not as many bytes as a key of that algorithm, or
                those are no whole number of blocks.
        """
        cdef arena_algorithm made_algorithm = _algorithm(algorithm)
        cdef const arena_cell *cell
        cdef arena_handle made
        cdef size_t length = self._require_transport(made_algorithm)
        if <size_t>PyBytes_GET_SIZE(ciphertext) != length:
            raise ValueError(f"an encrypted {_NAMES[algorithm]} key has {length} bytes")
        _require(arena_pin(self._handle, &cell))
        cdef arena_status status = key_decrypt_to_key(
            cell, <const uint8_t *>PyBytes_AS_STRING(ciphertext), made_algorithm, &made)
        arena_unpin(cell)
        _require(status)
        return _owned(made_algorithm, made)

    def unwrap_within(self, bytes ciphertext not None, size_t offset, int algorithm):
        """Decrypt whole blocks (ECB), of which the bytes from an offset on are a key.

        Returns the plaintext, at most 256 bytes, with zeros in the key's place, and the key.

        Raises:
            ValueError: the ciphertext is no whole number of blocks or too long, or the key is not within it.
        """
        cdef arena_algorithm made_algorithm = _algorithm(algorithm)
        cdef size_t length = self._require_whole_blocks(ciphertext)
        cdef const arena_cell *cell
        cdef arena_handle made
        if length > KEY_MAX_AROUND:
            raise ValueError(f"a key stands within at most {KEY_MAX_AROUND} bytes")
        if offset > length or length - offset < arena_key_bytes(made_algorithm):
            raise ValueError(f"a {_NAMES[algorithm]} key has {arena_key_bytes(made_algorithm)} bytes")
        cdef bytes around = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        _require(arena_pin(self._handle, &cell))
        cdef arena_status status = key_decrypt_key_within(
            cell, <const uint8_t *>PyBytes_AS_STRING(ciphertext), length, offset, made_algorithm,
            <uint8_t *>PyBytes_AS_STRING(around), &made)
        arena_unpin(cell)
        _require(status)
        return around, _owned(made_algorithm, made)

    def wrap(self, KeyHandle key not None, bytes nonce not None, bytes header not None):
        """Encrypt another key under this SM4 key (GCM) and bind the header to it.

        The nonce has 12 bytes and is never used twice with this key. Returns ciphertext ‖ tag of 16 bytes.
        """
        cdef size_t length = arena_key_bytes(<arena_algorithm>key.algorithm) + GCM_TAG_BYTES
        cdef const arena_cell *kek
        cdef const arena_cell *cell
        self._require_wrapping(nonce)
        cdef bytes wrapped = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        _require(arena_pin(self._handle, &kek))
        cdef arena_status status = arena_pin(key._handle, &cell)
        if status == ARENA_OK:
            status = gcm_wrap(
                kek, <const uint8_t *>PyBytes_AS_STRING(nonce), <const uint8_t *>PyBytes_AS_STRING(header),
                <size_t>PyBytes_GET_SIZE(header), cell, <uint8_t *>PyBytes_AS_STRING(wrapped))
            arena_unpin(cell)
        arena_unpin(kek)
        _require(status)
        return wrapped

    def unwrap(self, bytes wrapped not None, bytes nonce not None, bytes header not None, int algorithm):
        """Decrypt a wrapped key into locked memory; the opposite of `wrap`.

        Raises:
            KeyNotAuthentic: wrapped key, header, nonce or wrapping key is not what it was.
        """
        cdef arena_algorithm made_algorithm = _algorithm(algorithm)
        cdef const arena_cell *kek
        cdef arena_handle made
        cdef gcm_verdict verdict
        if <size_t>PyBytes_GET_SIZE(wrapped) != arena_key_bytes(made_algorithm) + GCM_TAG_BYTES:
            raise KeyNotAuthentic("the wrapped key has the wrong length for its algorithm")
        self._require_wrapping(nonce)
        _require(arena_pin(self._handle, &kek))
        cdef arena_status status = gcm_unwrap(
            kek, <const uint8_t *>PyBytes_AS_STRING(nonce), <const uint8_t *>PyBytes_AS_STRING(header),
            <size_t>PyBytes_GET_SIZE(header), <const uint8_t *>PyBytes_AS_STRING(wrapped), made_algorithm, &made,
            &verdict)
        arena_unpin(kek)
        _require(status)
        if verdict != GCM_AUTHENTIC:
            raise KeyNotAuthentic("the key block was altered or is under another key")
        return _owned(made_algorithm, made)

    def seal(self, data, bytes nonce not None, bytes header not None):
        """Encrypt 0 to 65536 bytes of data under this SM4 key (GCM) and bind the header to them.

        The nonce has 12 bytes and is never used twice with this key. Returns ciphertext ‖ tag of 16 bytes. The data
        are bytes or a bytearray, which stays as it is.
        """
        cdef Py_buffer view
        cdef bytes sealed
        self._require_wrapping(nonce)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len > GCM_MAX_BYTES:
                raise ValueError(f"at most {GCM_MAX_BYTES} bytes are sealed together")
            sealed = PyBytes_FromStringAndSize(NULL, view.len + GCM_TAG_BYTES)
            self._seal(
                nonce, header, <const uint8_t *>view.buf, <size_t>view.len,
                <uint8_t *>PyBytes_AS_STRING(sealed))
        finally:
            PyBuffer_Release(&view)
        return sealed

    def open(self, bytes sealed not None, bytes nonce not None, bytes header not None):
        """Decrypt what `seal` made.

        Raises:
            KeyNotAuthentic: sealed data, header, nonce or key is not what it was.
        """
        cdef size_t length = self._require_sealed(sealed, nonce)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        self._open(sealed, nonce, header, <uint8_t *>PyBytes_AS_STRING(data))
        return data

    def open_into(self, bytearray place not None, bytes sealed not None, bytes nonce not None, bytes header not None):
        """Decrypt what `seal` made into a bytearray of its length, which the caller can wipe.

        Raises:
            KeyNotAuthentic: sealed data, header, nonce or key is not what it was; the place stays as it was.
        """
        cdef size_t length = self._require_sealed(sealed, nonce)
        cdef Py_buffer view
        # While its buffer is held, nobody can change a bytearray's length.
        PyObject_GetBuffer(place, &view, PyBUF_WRITABLE)
        try:
            if <size_t>view.len != length:
                raise ValueError("the place has another length than the data")
            self._open(sealed, nonce, header, <uint8_t *>view.buf)
        finally:
            PyBuffer_Release(&view)

    def split(self, threshold, count):
        """Split a key of 16 bytes into shares, 16 bytes each, numbered from 1; `combine` is the opposite.

        Any `threshold` of them make the key; fewer say nothing of it. 1 <= threshold <= count <= 255.
        """
        cdef uint8_t *places[SHAMIR_MAX_SHARES]
        cdef const arena_cell *cell
        cdef list shares = []
        cdef bytes share
        cdef size_t least, most, i
        cdef arena_status status
        if arena_key_bytes(<arena_algorithm>self.algorithm) != SHAMIR_SHARE_BYTES:
            raise ValueError(f"only a key of {SHAMIR_SHARE_BYTES} bytes can be split")
        if not isinstance(threshold, int) or not isinstance(count, int):
            raise TypeError("threshold and count are whole numbers")
        if not 1 <= threshold <= count <= SHAMIR_MAX_SHARES:
            raise ValueError(f"1 <= threshold <= count <= {SHAMIR_MAX_SHARES}")
        least, most = threshold, count
        for i in range(most):
            share = PyBytes_FromStringAndSize(NULL, SHAMIR_SHARE_BYTES)
            shares.append(share)
            places[i] = <uint8_t *>PyBytes_AS_STRING(share)
        _require(arena_pin(self._handle, &cell))
        with nogil:
            status = shamir_split(cell, least, most, places)
            arena_unpin(cell)
        _require(status)
        return shares

    def __repr__(self):
        return f"<KeyHandle {_NAMES[self.algorithm]}>"

    def __reduce__(self):
        raise TypeError("a key handle is never pickled")

    cdef bytes _blocks(self, bytes blocks, bint is_decryption):
        cdef size_t length = self._require_whole_blocks(blocks)
        cdef bytes result = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        cdef const uint8_t *data = <const uint8_t *>PyBytes_AS_STRING(blocks)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(result)
        cdef const arena_cell *cell
        _require(arena_pin(self._handle, &cell))
        cdef arena_status status
        if self._work(length) < _RELEASE_WORK:
            status = _crypt(cell, data, out, length, is_decryption)
        else:
            with nogil:
                status = _crypt(cell, data, out, length, is_decryption)
        _require(status)
        return result

    cdef size_t _require_whole_blocks(self, bytes blocks) except? 0:
        cdef size_t size = key_block_bytes(<arena_algorithm>self.algorithm)
        cdef size_t length = <size_t>PyBytes_GET_SIZE(blocks)
        if length == 0 or length % size:
            raise ValueError(f"{_NAMES[self.algorithm]} takes whole blocks of {size} bytes")
        return length

    cdef int _seal(self, bytes nonce, bytes header, const uint8_t *data, size_t length, uint8_t *out) except -1:
        cdef const uint8_t *nonce_at = <const uint8_t *>PyBytes_AS_STRING(nonce)
        cdef const uint8_t *header_at = <const uint8_t *>PyBytes_AS_STRING(header)
        cdef size_t header_length = <size_t>PyBytes_GET_SIZE(header)
        cdef const arena_cell *kek
        cdef arena_status status
        _require(arena_pin(self._handle, &kek))
        if _gcm_work(header_length, length) < _RELEASE_WORK:
            status = gcm_seal(kek, nonce_at, header_at, header_length, data, length, out)
            arena_unpin(kek)
        else:
            with nogil:
                status = gcm_seal(kek, nonce_at, header_at, header_length, data, length, out)
                arena_unpin(kek)
        _require(status)
        return 0

    cdef int _open(self, bytes sealed, bytes nonce, bytes header, uint8_t *out) except -1:
        cdef const uint8_t *nonce_at = <const uint8_t *>PyBytes_AS_STRING(nonce)
        cdef const uint8_t *header_at = <const uint8_t *>PyBytes_AS_STRING(header)
        cdef size_t header_length = <size_t>PyBytes_GET_SIZE(header)
        cdef const uint8_t *sealed_at = <const uint8_t *>PyBytes_AS_STRING(sealed)
        cdef size_t length = <size_t>PyBytes_GET_SIZE(sealed) - GCM_TAG_BYTES
        cdef gcm_verdict verdict
        cdef const arena_cell *kek
        cdef arena_status status
        _require(arena_pin(self._handle, &kek))
        if _gcm_work(header_length, length) < _RELEASE_WORK:
            status = gcm_open(kek, nonce_at, header_at, header_length, sealed_at, length, out, &verdict)
            arena_unpin(kek)
        else:
            with nogil:
                status = gcm_open(kek, nonce_at, header_at, header_length, sealed_at, length, out, &verdict)
                arena_unpin(kek)
        _require(status)
        if verdict != GCM_AUTHENTIC:
            raise KeyNotAuthentic("the sealed data were altered or are under another key")
        return 0

    cdef size_t _require_sealed(self, bytes sealed, bytes nonce) except? 0:
        cdef Py_ssize_t length = PyBytes_GET_SIZE(sealed)
        self._require_wrapping(nonce)
        if not GCM_TAG_BYTES <= length <= GCM_MAX_BYTES + GCM_TAG_BYTES:
            raise KeyNotAuthentic("the sealed data have the wrong length")
        return <size_t>(length - GCM_TAG_BYTES)

    cdef size_t _require_transport(self, arena_algorithm algorithm) except 0:
        cdef size_t length = arena_key_bytes(algorithm)
        if self.algorithm == ARENA_DES:
            raise ValueError("a transport key is an SM4 or 3DES key")
        if length % key_block_bytes(<arena_algorithm>self.algorithm):
            raise ValueError(f"a {_NAMES[algorithm]} key is no whole block of {_NAMES[self.algorithm]}")
        return length

    cdef int _require_wrapping(self, bytes nonce) except -1:
        if self.algorithm != ARENA_SM4:
            raise ValueError("keys are wrapped under SM4, and so are data sealed")
        if PyBytes_GET_SIZE(nonce) != GCM_NONCE_BYTES:
            raise ValueError(f"a nonce has {GCM_NONCE_BYTES} bytes")
        return 0

    cdef size_t _work(self, size_t length) noexcept:
        if self.algorithm == ARENA_SM4:
            return length // 16
        return length // 8 * _DES_WORK


cdef arena_status _crypt(
    const arena_cell *cell, const uint8_t *data, uint8_t *out, size_t length, bint is_decryption
) noexcept nogil:
    """Encrypt or decrypt under a pinned key and unpin it."""
    cdef arena_status status = ARENA_OK
    if is_decryption:
        status = key_decrypt(cell, data, out, length)
    else:
        key_encrypt(cell, data, out, length)
    arena_unpin(cell)
    return status


cdef size_t _gcm_work(size_t header_length, size_t length) noexcept:
    return (header_length // 16 + length // 16) * _GCM_WORK


def generate(int algorithm):
    """Make a random key in locked memory: 16 bytes for SM4 and TDES, 8 for DES.

    DES and TDES keys have odd parity, and a weak one (see `KeyWeak`) is drawn again.
    """
    cdef arena_algorithm made_algorithm = _algorithm(algorithm)
    cdef arena_handle made
    _require(key_generate(made_algorithm, &made))
    return _owned(made_algorithm, made)


def combine(int algorithm, shares):
    """Make the key of 16 bytes that was split, from as many shares as its threshold.

    Each share is a number, 1 to 255, and 16 bytes; no number comes twice. Too few shares, or wrong ones, make another
    key: compare its check value.
    """
    cdef arena_algorithm made_algorithm = _algorithm(algorithm)
    cdef uint8_t numbers[SHAMIR_MAX_SHARES]
    cdef const uint8_t *places[SHAMIR_MAX_SHARES]
    cdef list held = []
    cdef set seen = set()
    cdef size_t n = 0
    cdef long number
    cdef bytes share
    cdef arena_handle made
    cdef arena_status status
    if arena_key_bytes(made_algorithm) != SHAMIR_SHARE_BYTES:
        raise ValueError(f"only a key of {SHAMIR_SHARE_BYTES} bytes was split")
    for given_number, given_share in shares:
        # Cython would take 1.5 for 1.
        if not isinstance(given_number, int) or not isinstance(given_share, bytes):
            raise TypeError("a share is a number and bytes")
        if not 1 <= given_number <= SHAMIR_MAX_SHARES:
            raise ValueError(f"a share's number is 1 to {SHAMIR_MAX_SHARES}")
        number = given_number
        share = given_share
        if number in seen:
            raise ValueError("two shares have the same number")
        if PyBytes_GET_SIZE(share) != SHAMIR_SHARE_BYTES:
            raise ValueError(f"a share has {SHAMIR_SHARE_BYTES} bytes")
        # Different numbers up to the most: there is a place for each.
        seen.add(number)
        held.append(share)
        numbers[n] = <uint8_t>number
        places[n] = <const uint8_t *>PyBytes_AS_STRING(share)
        n += 1
    if n == 0:
        raise ValueError("a key is combined from at least one share")
    with nogil:
        status = shamir_combine(made_algorithm, numbers, places, n, &made)
    _require(status)
    return _owned(made_algorithm, made)


def wipe(bytearray material not None):
    """Overwrite a bytearray with zeros."""
    cdef Py_buffer view
    PyObject_GetBuffer(material, &view, PyBUF_WRITABLE)
    arena_wipe(view.buf, <size_t>view.len)
    PyBuffer_Release(&view)


def load(int algorithm, material):
    """Take key bytes in: 16 for SM4 and TDES, 8 for DES. What can be written to, as a bytearray, is wiped."""
    cdef arena_algorithm made_algorithm = _algorithm(algorithm)
    cdef arena_handle made
    cdef arena_status status
    cdef Py_buffer view
    PyObject_GetBuffer(material, &view, PyBUF_SIMPLE)
    try:
        if <size_t>view.len != arena_key_bytes(made_algorithm):
            raise ValueError(f"a {_NAMES[algorithm]} key has {arena_key_bytes(made_algorithm)} bytes")
        status = arena_take(made_algorithm, <const uint8_t *>view.buf, &made)
    finally:
        if not view.readonly:
            arena_wipe(view.buf, <size_t>view.len)
        PyBuffer_Release(&view)
    _require(status)
    return _owned(made_algorithm, made)


# --- card tasks in batches

cdef int _hold(card_bytes *place, object value, list held) except -1:
    """Point C at bytes that stay where they are until the batch is done."""
    if not isinstance(value, bytes):
        raise TypeError("a task's fields are bytes")
    held.append(value)
    place.at = <const uint8_t *>PyBytes_AS_STRING(value)
    place.length = <size_t>PyBytes_GET_SIZE(value)
    return 0


cdef object _refusal(const card_task *task):
    """Return the refusal that a task's result means."""
    cdef card_result result = task.result
    if result == CARD_KEY_GONE:
        return KeyNotFound("the key was wiped from memory after it was asked for")
    if result == CARD_DIVERSIFIER_LENGTH:
        return BadParameter("a diversifier has 8 bytes")
    if result == CARD_SESSION_FACTOR_LENGTH:
        return BadParameter("a session factor has 4 or 8 bytes, or 16 where the algorithm's block has 16")
    if result == CARD_CHALLENGE_LENGTH:
        return BadParameter("a challenge has 8 bytes")
    if result == CARD_HEADER_LENGTH:
        return BadParameter("a header is CLA INS P1 P2, 4 bytes")
    if result == CARD_DATA_TOO_LARGE:
        return TooLarge(f"a command carries at most {CARD_MAX_PROTECTED_DATA} bytes beside its MAC")
    if result == CARD_ENCIPHERED_TOO_LARGE:
        size = key_block_bytes(task.algorithm)
        return TooLarge(f"encrypted, the data have {(task.data.length // size + 1) * size} bytes and do not fit")
    if task.kind == CARD_CRYPTOGRAM:
        return CardNotAuthentic()
    if task.kind == CARD_TAC:
        return TacNotAuthentic()
    return MacNotAuthentic()


@cython.final
cdef class CardKernel:
    """Card tasks in batches, with the city keys that they need kept in a small cache.

    It is told the four classes of task that it will see; what it reads of them is what `keyd.keys.sam` declares.
    """

    cdef object _cryptogram
    cdef object _mac
    cdef object _protect
    cdef object _tac
    cdef Py_ssize_t _max_cities
    cdef dict _cities

    def __init__(self, *, cryptogram, mac, protect, tac, Py_ssize_t max_cities):
        if max_cities < 1:
            raise ValueError("at least one city's key is kept")
        self._cryptogram = cryptogram
        self._mac = mac
        self._protect = protect
        self._tac = tac
        self._max_cities = max_cities
        self._cities = {}

    def compute(self, tasks, open_city):
        """Compute a batch: each result, bytes or a refusal, stands where its task stood.

        `open_city` makes a city's key from the task's key reference, or raises the refusal that the task gets.
        """
        return self._run(tasks, open_city, None)

    def verify(self, tasks, presented, open_city):
        """Compute a batch and compare each result with what the card presented, in constant time.

        Each result is None, or the refusal: CardNotAuthentic, MacNotAuthentic or TacNotAuthentic where it differs.
        """
        return self._run(tasks, open_city, list(presented))

    def city(self, long address, long card_algorithm, str region not None, long purpose):
        """Return the city key cached for a purpose, or None."""
        return self._cities.get((_place(address, card_algorithm, purpose), region))

    def forget(self):
        """Free all cached city keys."""
        self._cities = {}

    @property
    def cities(self):
        """How many city keys are cached."""
        return len(self._cities)

    cdef list _run(self, tasks, open_city, list presented):
        # Our own list, so that nobody changes it while the GIL is released.
        cdef list given = list(tasks)
        cdef Py_ssize_t n = len(given), i
        cdef list results = [None] * n
        cdef list places = []
        cdef list held = []
        cdef size_t work = 0
        cdef card_bytes *shown = NULL
        cdef uint8_t *expected = NULL
        cdef bytes out
        cdef card_task *batch
        if n == 0:
            return results
        if presented is not None and len(presented) != n:
            raise ValueError("one presented value per task")
        batch = <card_task *>PyMem_Calloc(<size_t>n, sizeof(card_task))
        try:
            if presented is not None:
                shown = <card_bytes *>PyMem_Calloc(<size_t>n, sizeof(card_bytes))
                expected = <uint8_t *>PyMem_Calloc(<size_t>n, CARD_CRYPTOGRAM_BYTES)
            if batch == NULL or (presented is not None and (shown == NULL or expected == NULL)):
                raise MemoryError
            for i in range(n):
                places.append(self._read(given[i], &batch[i], open_city, results, i, held))
                if batch[i].result != CARD_DONE:
                    continue
                if presented is not None:
                    if is_protect(batch[i].kind):
                        raise TypeError("a command under secure messaging is made, not verified")
                    _hold(&shown[i], presented[i], held)
                    batch[i].presented = &shown[i]
                card_measure(&batch[i])
                if batch[i].result != CARD_DONE:
                    continue
                work += card_work(&batch[i])
                if presented is not None:
                    batch[i].out = expected + i * CARD_CRYPTOGRAM_BYTES
                else:
                    out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>batch[i].out_length)
                    batch[i].out = <uint8_t *>PyBytes_AS_STRING(out)
                    results[i] = out
            if work < _RELEASE_WORK:
                card_compute(batch, <size_t>n)
            else:
                with nogil:
                    card_compute(batch, <size_t>n)
            for i in range(n):
                if batch[i].result == CARD_DONE or isinstance(results[i], Refusal):
                    continue
                if batch[i].result == CARD_KEY_CORRUPT:
                    _require(ARENA_CORRUPT)
                if batch[i].result == CARD_KEY_GONE:
                    # Wiped behind the cache's back: the next task opens it anew, or is refused by the ring.
                    self._cities.pop(places[i], None)
                results[i] = _refusal(&batch[i])
            return results
        finally:
            if expected != NULL:
                arena_wipe(expected, <size_t>n * CARD_CRYPTOGRAM_BYTES)
            PyMem_Free(expected)
            PyMem_Free(shown)
            PyMem_Free(batch)

    cdef tuple _read(self, task, card_task *into, open_city, list results, Py_ssize_t i, list held):
        """Read one task; return its city's place in the cache. If it has no city key, its refusal is its result."""
        cdef object kind = type(task)
        cdef object ref = task.key
        cdef object region = ref.region
        cdef long address = ref.address
        cdef long card_algorithm = ref.algorithm
        cdef tuple place = (_place(address, card_algorithm, ref.purpose), region)
        cdef object cached = self._cities.get(place)
        cdef KeyHandle city
        if cached is None:
            try:
                city = self._open(place, ref, open_city)
            except Refusal as refusal:
                results[i] = refusal
                into.result = CARD_KEY_GONE
                return place
        else:
            city = <KeyHandle>cached
        held.append(city)
        into.city = city._handle
        into.algorithm = <arena_algorithm>city.algorithm
        _hold(&into.diversifier, ref.diversifier, held)
        if kind is self._cryptogram:
            into.kind = CARD_CRYPTOGRAM
            _hold(&into.session_factor, task.session_factor, held)
            _hold(&into.data, task.challenge, held)
        elif kind is self._mac:
            into.kind = CARD_MAC
            _hold(&into.session_factor, task.session_factor, held)
            _hold(&into.data, task.data, held)
        elif kind is self._protect:
            into.kind = CARD_PROTECT_ENCIPHERED if task.encrypt else CARD_PROTECT
            _hold(&into.session_factor, task.session_factor, held)
            _hold(&into.header, task.header, held)
            _hold(&into.data, task.plaintext, held)
        elif kind is self._tac:
            into.kind = CARD_TAC
            _hold(&into.data, task.data, held)
        else:
            raise TypeError(f"{kind.__name__} is no task for cards")
        return place

    cdef KeyHandle _open(self, tuple place, ref, open_city):
        city = open_city(ref)
        if not isinstance(city, KeyHandle):
            raise TypeError("open_city returns a KeyHandle")
        if len(self._cities) >= self._max_cities:
            # The oldest goes: a dict keeps insertion order, and a wrong guess costs two diversifications.
            del self._cities[next(iter(self._cities))]
        self._cities[place] = city
        return city


cdef inline long _place(long address, long card_algorithm, long purpose) noexcept:
    # One plain number: an enum's member is slow to hash. A purpose has 24 bits, an algorithm 8.
    return purpose << 24 | address << 8 | card_algorithm


cdef inline bint is_protect(card_kind kind) noexcept:
    return kind == CARD_PROTECT or kind == CARD_PROTECT_ENCIPHERED


# --- for C in other extensions

cdef struct pump_cards:
    void (*measure)(card_task *task) noexcept nogil
    void (*compute)(card_task *tasks, size_t n) noexcept nogil


cdef pump_cards _card_functions
_card_functions.measure = card_measure
_card_functions.compute = card_compute

# What keyd.pump computes with: card.h's two functions, in the order of its pump_cards.
card_functions = PyCapsule_New(&_card_functions, "keyd.card_functions", NULL)


# --- the arena and the paths

def open_arena(size_t size = ARENA_DEFAULT_BYTES):
    """Open locked key memory of so many bytes. Without this, the first key opens it with the default.

    Raises:
        KeyMemoryNotLocked: RLIMIT_MEMLOCK is too small; the sentence says what to do.
        KeyMemoryError: it is open with another size, or cannot be had.
    """
    _require(arena_open(size), size)


def arena_info():
    """Return the arena's counters; all zero before it is open."""
    cdef arena_counters counters = arena_count()
    return ArenaInfo(
        used=counters.used, capacity=counters.capacity, locked_bytes=counters.bytes,
        cell_bytes=counters.cell_bytes, address=counters.address)


def wipe_all():
    """Wipe every key, waiting for running computations: sealing. All handles are gone; new keys can be loaded."""
    with nogil:
        arena_wipe_all()


def paths():
    """Return the names of all SM4 paths that this machine supports, best first."""
    cdef int i = 0
    cdef list names = []
    while sm4_paths[i] != NULL:
        if sm4_paths[i].is_supported():
            names.append(sm4_paths[i].name.decode())
        i += 1
    return tuple(names)


def path_name():
    """Return the name of the SM4 path in use."""
    return sm4_current().name.decode()


def select_path(str name not None):
    """Choose an SM4 path by name, for this process. Not while another thread computes.

    Raises:
        ValueError: there is no such path, or this machine does not support it.
    """
    # C would see no further than a zero.
    if "\0" in name or sm4_select(name.encode()):
        raise ValueError(f"no SM4 path {name!r} on this machine: it supports {', '.join(paths())}")


def _select_from_environment():
    cdef const char *name = getenv("KEYD_SM4")
    if name == NULL or name[0] == 0:
        return
    try:
        select_path(name.decode(errors="replace"))
    except ValueError as error:
        raise ImportError(f"KEYD_SM4: {error}") from None


_select_from_environment()
