//! What goes over the wire: a listener beside a server that passes everything on and counts it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const CHUNK: usize = 64 << 10;

pub(super) struct Meter {
    pub(super) address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Meter {
    pub(super) async fn before(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((server.ip(), 0)).await.context("listen beside a server")?;
        let (address, bytes) = (listener.local_addr()?, Arc::<AtomicU64>::default());
        let counted = Arc::clone(&bytes);
        #[expect(clippy::disallowed_methods, reason = "it ends with the benchmark")]
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass_on(from_client, to_server, Arc::clone(&counted)));
                tokio::spawn(pass_on(from_server, to_client, Arc::clone(&counted)));
            }
        });
        Ok(Self { address, bytes })
    }

    /// In both directions since it was last asked.
    pub(super) fn take(&self) -> u64 {
        self.bytes.swap(0, Ordering::Relaxed)
    }
}

/// Until either side has had enough.
async fn pass_on(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, bytes: Arc<AtomicU64>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        bytes.fetch_add(length as u64, Ordering::Relaxed);
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
    // The other side learns of it when this half is dropped.
}
