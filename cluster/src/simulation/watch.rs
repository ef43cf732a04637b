//! A watch channel that wakes those who wait in the order in which they came: tokio's own wakes them in a random
//! order, which no seed decides. Its methods are those of tokio's; openraft has it by [`OrderedWatch`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use openraft::rt::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft::{OptionalSend, OptionalSync};
use tokio::sync::{Notify, watch};

struct Shared<T> {
    value: watch::Sender<T>,
    version: AtomicU64,
    changed: Notify,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

/// One that sets the value.
pub struct Sender<T>(Arc<Shared<T>>);

/// One that sees it.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// Nobody sets the value any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody sets the value any more")]
pub struct Closed;

/// Both ends.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Shared<T> {
    fn announce(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }
}

impl<T> Sender<T> {
    /// The end that sets the value.
    pub fn new(value: T) -> Self {
        Sender(Arc::new(Shared {
            value: watch::Sender::new(value),
            version: AtomicU64::default(),
            changed: Notify::default(),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::default(),
        }))
    }

    /// Sets the value, whether or not anybody sees it.
    pub fn send_replace(&self, value: T) -> T {
        let former = self.0.value.send_replace(value);
        self.0.announce();
        former
    }

    /// Changes the value.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.0.value.send_modify(modify);
        self.0.announce();
    }

    /// The value.
    pub fn borrow(&self) -> watch::Ref<'_, T> {
        self.0.value.borrow()
    }

    /// One that has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver::new(&self.0, self.0.version())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::SeqCst);
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    fn new(shared: &Arc<Shared<T>>, seen: u64) -> Self {
        shared.receivers.fetch_add(1, Ordering::SeqCst);
        Receiver { shared: Arc::clone(shared), seen }
    }

    /// The value.
    pub fn borrow(&self) -> watch::Ref<'_, T> {
        self.shared.value.borrow()
    }

    /// The value, which has been seen then.
    pub fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.seen = self.shared.version();
        self.shared.value.borrow()
    }

    /// Waits for a value that was not seen.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let mut change = std::pin::pin!(self.shared.changed.notified());
            change.as_mut().enable();
            let version = self.shared.version();
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if self.shared.senders.load(Ordering::SeqCst) == 0 {
                return Err(Closed);
            }
            change.await;
        }
    }

    /// Waits for a value that is `wanted`.
    pub async fn wait_for(&mut self, wanted: impl Fn(&T) -> bool) -> Result<watch::Ref<'_, T>, Closed> {
        loop {
            let found = wanted(&self.borrow_and_update());
            if found {
                return Ok(self.shared.value.borrow());
            }
            self.changed().await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Receiver::new(&self.shared, self.seen)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The kind of channel.
pub(crate) struct OrderedWatch;

impl Watch for OrderedWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        channel(init)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.receivers.load(Ordering::SeqCst) == 0 {
            return Err(SendError(value));
        }
        self.send_replace(value);
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let modified = self.0.value.send_if_modified(modify);
        if modified {
            self.0.announce();
        }
        modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Sender::subscribe(self)
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        Receiver::changed(self).await.map_err(|Closed| RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        Receiver::borrow_and_update(self)
    }
}
