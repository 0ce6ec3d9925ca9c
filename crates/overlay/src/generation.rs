//! The number that the kernel gives to a state of all nftables rules of a network namespace.
//!
//! Every change of rules, whoever makes it, has another number. So who has seen that nothing is missing only has
//! to look again when the number is another one: a system call or two, where a run of `nft` takes 4 ms.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `(NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_…` (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_GENERATION: u16 = 10 << 8 | 16;
const NEW_GENERATION: u16 = 10 << 8 | 15;
const REQUEST: u16 = 1;
/// NFTA_GEN_ID, a big-endian u32.
const NUMBER: u16 = 1;

/// `struct nlmsghdr`, then `struct nfgenmsg` of no family.
const HEAD_BYTES: usize = 16 + 4;

/// Of the network namespace of the calling thread.
pub(crate) fn generation() -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = Vec::with_capacity(HEAD_BYTES);
    request.extend((HEAD_BYTES as u32).to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 12]);
    socket.send(&request, 0)?;
    let mut answer = Vec::with_capacity(4096);
    while let Err(error) = socket.recv(&mut answer, 0) {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    number(&answer).ok_or_else(|| io::Error::other("the kernel does not number states of nftables"))
}

fn number(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let mut attributes = answer.get(HEAD_BYTES..).filter(|_| kind == NEW_GENERATION)?;
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let length = u16::from_ne_bytes([head[0], head[1]]) as usize;
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) == NUMBER {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_wherever_it_stands_and_nothing_else_is_taken_for_it() {
        let answer = |kind: u16, attributes: &[(u16, &[u8])]| {
            let mut bytes = vec![0; HEAD_BYTES];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            for (kind, value) in attributes {
                bytes.extend((4 + value.len() as u16).to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
                bytes.extend(*value);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        };
        let number_7 = (NUMBER, &[0, 0, 0, 7][..]);
        assert_eq!(number(&answer(NEW_GENERATION, &[number_7])), Some(7));
        assert_eq!(
            number(&answer(NEW_GENERATION, &[(3, b"nft\0x"), number_7])),
            Some(7)
        );
        assert_eq!(number(&answer(NEW_GENERATION, &[(3, b"nft")])), None);
        assert_eq!(number(&answer(2, &[number_7])), None);
        assert_eq!(number(&answer(NEW_GENERATION, &[(NUMBER, &[7])])), None);
        assert_eq!(number(&[0; 9]), None);
    }
}
