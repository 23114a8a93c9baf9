//! Encrypted sections (`EncryptedSegment`, `EncryptionUtils`): chunks, each compressed with LZ4, then encrypted.
//!
//! Nothing in a section tells a wrong key from damage. So a section that does not decrypt is only called damaged once
//! the key has opened another one.

use aes::{Aes128, Aes192, Aes256};
use cbc::{
    Decryptor,
    cipher::{BlockCipherDecrypt, BlockModeDecrypt, InnerIvInit, KeyInit, KeyIvInit, block_padding::Pkcs7},
};

use crate::compression::{Compressor, SectionFault};

/// The transformation of Java that is read; any other is refused by its name.
pub(crate) const CIPHER: &str = "AES/CBC/PKCS5Padding";

pub(crate) struct Decryption {
    key: Vec<u8>,
    /// Cassandra begins every chunk of a segment with the same one.
    iv: Vec<u8>,
    /// A chunk was decrypted to what only the right key gives.
    pub(crate) proven: bool,
}

impl std::fmt::Debug for Decryption {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Decryption").field("proven", &self.proven).finish_non_exhaustive()
    }
}

impl Decryption {
    /// `None`: not a key or vector of AES.
    pub(crate) fn new(key: Vec<u8>, iv: Vec<u8>) -> Option<Self> {
        (matches!(key.len(), 16 | 24 | 32) && iv.len() == 16).then_some(Self { key, iv, proven: false })
    }

    /// The plain bytes of all chunks.
    pub(crate) fn decode(&mut self, stored: &mut [u8], stated: u64, limit: u64) -> Result<Vec<u8>, SectionFault> {
        let credible = Compressor::Lz4.can_hold(stored.len() as u64, stated) && stated <= limit;
        let mut plain = Vec::with_capacity(if credible { usize::try_from(stated).unwrap_or(0) } else { 0 });
        let mut rest = stored;
        while !rest.is_empty() {
            let (head, chunks) = rest.split_first_chunk_mut::<8>().ok_or(SectionFault::Corrupt)?;
            let [encrypted, compressed] = crate::input::words(*head).map(|word| word as usize);
            let (chunk, others) = chunks.split_at_mut_checked(encrypted).ok_or(SectionFault::Corrupt)?;
            let chunk = aes_cbc(&self.key, &self.iv, chunk).filter(|chunk| chunk.len() == compressed);
            let (length, chunk) = chunk.and_then(<[u8]>::split_first_chunk::<4>).ok_or(SectionFault::Corrupt)?;
            let room = limit.saturating_sub(plain.len() as u64);
            let length = u64::from(u32::from_be_bytes(*length));
            let chunk = Compressor::Lz4.decode(chunk, length, room).map_err(|fault| match fault {
                SectionFault::TooLarge(size) => SectionFault::TooLarge(plain.len() as u64 + size),
                SectionFault::Corrupt => SectionFault::Corrupt,
            })?;
            if chunk.len() as u64 != length {
                return Err(SectionFault::Corrupt);
            }
            self.proven = true;
            plain.extend_from_slice(&chunk);
            rest = others;
        }
        Ok(plain)
    }
}

/// Decrypts in place. `None`: the lengths are not those of AES, or the padding is not one.
pub(crate) fn aes_cbc<'a>(key: &[u8], iv: &[u8], data: &'a mut [u8]) -> Option<&'a [u8]> {
    match key.len() {
        16 => cbc::<Aes128>(key, iv, data),
        24 => cbc::<Aes192>(key, iv, data),
        32 => cbc::<Aes256>(key, iv, data),
        _ => None,
    }
}

pub(crate) fn cbc<'a, C: BlockCipherDecrypt + KeyInit>(key: &[u8], iv: &[u8], data: &'a mut [u8]) -> Option<&'a [u8]>
where
    Decryptor<C>: KeyIvInit + InnerIvInit,
{
    Decryptor::<C>::new_from_slices(key, iv).ok()?.decrypt_padded::<Pkcs7>(data).ok()
}
