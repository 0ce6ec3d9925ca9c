//! The floating address: one that a single living host of the cluster has, for clients that know only one.
//!
//! Which host, and when, is decided by [`turn`]; here its decisions are carried out. The host that leads the
//! cluster has it, as most voters agree on that one already and it is another within two seconds of its death. Where
//! that one's router does not serve, or the host is drained, [`moving`] has another lead.

mod health;
mod moving;
mod turn;

use std::{collections::BTreeMap, net::SocketAddr, str::FromStr};

use anyhow::{Context, Result};
use api::peers::FloatingView;
use daemon::Shutdown;
use moving::Moving;
use overlay::floating::{self, FloatingAddress};
use tokio::{sync::watch, time::Instant};
use turn::{Act, Seen, Turn};
use types::HostId;

use crate::config::Config;

/// One address, and the interface to hold it where that is not found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floating {
    pub address: FloatingAddress,
    pub interface: Option<String>,
}

impl FromStr for Floating {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, interface) = match text.split_once('@') {
            Some((address, interface)) => (address, Some(interface.to_owned())),
            None => (text, None),
        };
        Ok(Floating {
            address: address.parse()?,
            interface,
        })
    }
}

/// Holds this host's part of the cluster's floating addresses.
pub struct Keeper {
    host: HostId,
    all: Vec<(Floating, Turn)>,
    /// This host's own address: what holds it holds those of no other network, too.
    own: watch::Receiver<String>,
    told: watch::Sender<Vec<FloatingView>>,
    /// What went wrong last with each, to say it once.
    troubles: BTreeMap<String, String>,
    /// Where routers tell whether they serve; the same on all hosts that could have an address.
    http_port: u16,
}

impl Keeper {
    /// And whether this host has each of the addresses.
    pub fn new(
        config: &Config,
        own: watch::Receiver<String>,
    ) -> Result<(Keeper, watch::Receiver<Vec<FloatingView>>)> {
        let all: Vec<_> = config
            .floating()?
            .into_iter()
            .map(|wish| (wish, Turn::default()))
            .collect();
        let view = |wish: &Floating| FloatingView {
            address: wish.address.to_string(),
            holder: None,
        };
        let (told, telling) = watch::channel(all.iter().map(|(wish, _)| view(wish)).collect());
        let keeper = Keeper {
            host: config.host_id()?,
            all,
            own,
            told,
            troubles: BTreeMap::new(),
            http_port: config.http_port(),
        };
        Ok((keeper, telling))
    }

    /// Runs until shutdown, and leaves the addresses then to those who come next.
    pub async fn run(mut self, store: controller::Store, shutdown: Shutdown) {
        if self.all.is_empty() {
            shutdown.cancelled().await;
            return;
        }
        let began = Instant::now();
        let mut leadership = store.leadership();
        let mut moving = Moving::default();
        // Asking takes time, which renewing does not have.
        let (serving, serves) = watch::channel(true);
        let watching = tokio::spawn(health::watch(self.http_port, serving, shutdown.clone()));
        let mut handed_on: Option<Instant> = None;
        loop {
            let leads = *leadership.borrow_and_update();
            let status = store.status();
            let is_only_voter = leads && status.voters.iter().all(|voter| voter.id == status.node_id);
            for index in 0..self.all.len() {
                let is_going = !leads && handed_on.is_some_and(|at| at.elapsed() < turn::LEFT_FOR);
                let act = |wish: &Floating, turn: &mut Turn| {
                    // It answers here until the next has it.
                    if is_going {
                        return turn.leave();
                    }
                    turn.look(Seen {
                        now: began.elapsed(),
                        leads,
                        is_only_voter,
                        is_here: leads && is_here(wish),
                    })
                };
                self.each(index, act);
            }
            if moving.look(began.elapsed(), leads, *serves.borrow()) {
                handed_on = Some(Instant::now());
                tokio::spawn(hand_on(store.clone(), self.http_port));
            }
            let pause = match self.told.borrow().iter().all(|view| view.holder.is_some()) {
                true => turn::RENEW,
                false => turn::LOOK,
            };
            tokio::select! {
                _ = tokio::time::sleep(pause), if leads => {}
                changed = leadership.changed() => if changed.is_err() {
                    // The store is gone, and this daemon ends with it.
                    break;
                },
                _ = shutdown.cancelled() => break,
            }
        }
        watching.abort();
        for index in 0..self.all.len() {
            self.each(index, |_, turn| turn.leave());
        }
    }

    fn each(&mut self, index: usize, act: impl FnOnce(&Floating, &mut Turn) -> Act) {
        let (wish, turn) = &mut self.all[index];
        let act = act(wish, turn);
        let done = carry_out(act, wish, &self.own.borrow());
        let address = wish.address.to_string();
        let holds = match &done {
            Ok(holds) => *holds,
            Err(_) => false,
        };
        let holder = holds.then(|| self.host.clone());
        let is_news = self
            .told
            .send_if_modified(|views| std::mem::replace(&mut views[index].holder, holder.clone()) != holder);
        if is_news {
            match holds {
                true => tracing::info!(address, "this host has the floating address"),
                false => tracing::info!(address, "this host does not have the floating address any more"),
            }
        }
        let trouble = done.err().map(|error| format!("{error:#}")).unwrap_or_default();
        let before = self.troubles.insert(address.clone(), trouble.clone());
        if !trouble.is_empty() && before.as_ref() != Some(&trouble) {
            tracing::error!(
                address,
                error = trouble,
                "the floating address cannot be held; trying again"
            );
        }
    }
}

/// Has a host lead whose router serves, and so have the addresses.
async fn hand_on(store: controller::Store, http_port: u16) {
    let others = health::others_that_serve(&store, http_port).await;
    if others.is_empty() {
        return tracing::warn!(
            "this host's router does not serve, and there is no other voter whose router does: the floating address stays"
        );
    }
    tracing::info!(to = ?others, "this host's router does not serve: another gets the floating address");
    store.hand_over_to(&others).await;
}

fn is_here(wish: &Floating) -> bool {
    matches!(floating::interface_of(wish.address.address), Ok(Some(_)))
}

/// Whether this host has the address afterwards, and means to.
fn carry_out(act: Act, wish: &Floating, own: &str) -> Result<bool> {
    match act {
        Act::Nothing => Ok(false),
        Act::Hold(lease) => {
            let interface = interface(wish, own)?;
            floating::hold(wish.address, &interface, lease)?;
            Ok(true)
        }
        Act::Release => {
            floating::release(wish.address.address)?;
            Ok(false)
        }
    }
}

fn interface(wish: &Floating, own: &str) -> Result<String> {
    if let Some(interface) = &wish.interface {
        return Ok(interface.clone());
    }
    if let Some(interface) = floating::interface_for(wish.address)? {
        return Ok(interface);
    }
    let own: Option<SocketAddr> = own.parse().ok();
    let interface = own.map(|own| floating::interface_of(own.ip())).transpose()?;
    interface.flatten().with_context(|| {
        format!(
            "no interface has an address of the network of {0}\nhint: name one in host.toml, such as floating = \
             [\"{0}@eth0\"]",
            wish.address
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_may_be_named_behind_the_address() {
        let check = |text: &str, interface: Option<&str>| {
            let wish: Floating = text.parse().unwrap();
            assert_eq!(wish.address.to_string(), "192.0.2.7/24");
            assert_eq!(wish.interface.as_deref(), interface);
        };
        check("192.0.2.7/24", None);
        check("192.0.2.7/24@eth1", Some("eth1"));
    }
}
