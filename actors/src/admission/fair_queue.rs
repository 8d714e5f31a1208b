//! The queue of waiting jobs: one queue for each tenant, and the order in which tenants take turns.

use std::collections::{HashMap, VecDeque};

use isol8_api::TenantId;

/// A place in a queue. Later tickets are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The waiting jobs of all tenants. `R` is the channel through which a job learns that its turn has come.
#[derive(Debug)]
pub(super) struct FairQueue<R> {
    /// The queues of tenants that have jobs.
    tenants: HashMap<TenantId, TenantQueue<R>>,
    /// Tenants that have waiting jobs. The next turn is the first tenant's.
    order: VecDeque<TenantId>,
    next_ticket: u64,
    len: usize,
}

#[derive(Debug)]
struct TenantQueue<R> {
    running: usize,
    waiting: VecDeque<(Ticket, R)>,
}

impl<R> Default for FairQueue<R> {
    fn default() -> Self {
        Self {
            tenants: HashMap::new(),
            order: VecDeque::new(),
            next_ticket: 0,
            len: 0,
        }
    }
}

impl<R> Default for TenantQueue<R> {
    fn default() -> Self {
        Self {
            running: 0,
            waiting: VecDeque::new(),
        }
    }
}

impl<R> FairQueue<R> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns how many jobs of one tenant wait.
    pub(super) fn of(&self, tenant: &TenantId) -> usize {
        self.tenants
            .get(tenant)
            .map_or(0, |queue| queue.waiting.len())
    }

    pub(super) fn push(&mut self, tenant: &TenantId, reply: R) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let queue = self.tenants.entry(tenant.clone()).or_default();
        if queue.waiting.is_empty() {
            self.order.push_back(tenant.clone());
        }
        queue.waiting.push_back((ticket, reply));
        self.len += 1;
        ticket
    }

    /// Takes out the job whose turn it is, and counts the job as running. A tenant is passed over while `most` of its
    /// jobs run.
    pub(super) fn next(&mut self, most: usize) -> Option<(TenantId, R)> {
        for _ in 0..self.order.len() {
            let tenant = self.order.pop_front()?;
            let Some(queue) = self.tenants.get_mut(&tenant) else {
                continue;
            };
            let next = (queue.running < most).then(|| queue.waiting.pop_front());
            if let Some((_, reply)) = next.flatten() {
                queue.running += 1;
                self.len -= 1;
                if !queue.waiting.is_empty() {
                    self.order.push_back(tenant.clone());
                }
                return Some((tenant, reply));
            }
            self.order.push_back(tenant);
        }
        None
    }

    /// Notes that a job of a tenant has ended.
    pub(super) fn ended(&mut self, tenant: &TenantId) {
        if let Some(queue) = self.tenants.get_mut(tenant) {
            queue.running -= 1;
        }
        self.forget_idle(tenant);
    }

    pub(super) fn remove(&mut self, tenant: &TenantId, ticket: Ticket) {
        let Some(queue) = self.tenants.get_mut(tenant) else {
            return;
        };
        if let Some(at) = queue.waiting.iter().position(|(one, _)| *one == ticket) {
            queue.waiting.remove(at);
            self.len -= 1;
            if queue.waiting.is_empty() {
                self.order.retain(|one| one != tenant);
            }
        }
        self.forget_idle(tenant);
    }

    /// Takes out the last job of the longest queue; of equally long queues, the job that came last. The job learns of
    /// this by the drop of its reply channel.
    pub(super) fn drop_from_longest(&mut self) -> Option<Ticket> {
        let last = |queue: &TenantQueue<R>| queue.waiting.back().map(|(ticket, _)| *ticket);
        let longest = self
            .tenants
            .iter()
            .max_by_key(|(_, queue)| (queue.waiting.len(), last(queue)));
        let (tenant, queue) = longest?;
        let (tenant, ticket) = (tenant.clone(), last(queue)?);
        self.remove(&tenant, ticket);
        Some(ticket)
    }

    fn forget_idle(&mut self, tenant: &TenantId) {
        let idle = |queue: &TenantQueue<R>| queue.running == 0 && queue.waiting.is_empty();
        if self.tenants.get(tenant).is_some_and(idle) {
            self.tenants.remove(tenant);
        }
    }
}
