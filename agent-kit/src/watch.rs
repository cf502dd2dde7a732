//! What a watch on things elsewhere tells, and how it waits while it hears nothing.

use std::time::Duration;

use tokio::{sync::mpsc::Sender, time::sleep};

/// The first wait after a failure; each further one is twice as long, up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What a watch tells: everything at first, then what changes. What is listed again replaces all
/// that was told before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<T> {
    /// All there is, now; what is not in it is gone.
    Listed(Vec<T>),
    Put(T),
    /// The one of this name.
    Gone(String),
    /// Why nothing can be heard at the moment; what was told stays in force.
    Trouble(String),
    /// It can be heard again.
    Recovered,
}

/// A failure of a watch that lasts: told once, waited for longer each time, and told to be over.
#[derive(Default, Debug)]
pub struct Trouble {
    waits: u32,
    told: Option<String>,
}

impl Trouble {
    /// Tells of a failure if it is news, and waits before the next try.
    pub async fn wait<T>(&mut self, sender: &Sender<Event<T>>, reason: &str) {
        if self.told.as_deref() != Some(reason) {
            self.told = Some(reason.into());
            let _ = sender.send(Event::Trouble(reason.into())).await;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.waits.min(8)).min(LAST_WAIT);
        self.waits += 1;
        tokio::select! {
            () = sleep(wait) => {}
            () = sender.closed() => {}
        }
    }

    /// Whether it lasts.
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Something was heard.
    pub async fn over<T>(&mut self, sender: &Sender<Event<T>>) {
        self.waits = 0;
        if self.told.take().is_some() {
            let _ = sender.send(Event::Recovered).await;
        }
    }
}
