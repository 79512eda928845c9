package main

// The pod network of a kind node, in the place of kind's own kindnetd (which is not to be had as a
// Go module). It does the three things that a small cluster needs and no more: the CNI configuration
// with this node's pod range, routes to the pod ranges of the other nodes, and masquerading of what
// leaves the pod network. It does not enforce NetworkPolicy.

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	cniFile = "/etc/cni/net.d/10-kindnet.conflist"
	// Until the node has its pod range nothing can start on it; later only new nodes matter.
	unsettledPeriod = 500 * time.Millisecond
	settledPeriod   = 5 * time.Second
)

const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "kindnet",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "mtu": 1500,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni-ipam-state",
        "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": %q}]]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

func keepPodNetwork(ctx context.Context) error {
	config, err := rest.InClusterConfig()
	if err != nil {
		return fmt.Errorf("read the service account: %w", err)
	}
	// The Service of the API server works only once kube-proxy does: go to the control plane itself.
	if endpoint := os.Getenv("CONTROL_PLANE_ENDPOINT"); endpoint != "" {
		config.Host = "https://" + endpoint
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client for %s: %w", config.Host, err)
	}
	ownAddress, podSubnet := os.Getenv("HOST_IP"), os.Getenv("POD_SUBNET")
	writtenRange := ""
	for {
		settled := false
		nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err == nil {
			settled, writtenRange, err = settle(nodes.Items, ownAddress, writtenRange)
		}
		if err == nil {
			err = masqueradeOutside(podSubnet)
		}
		if err != nil {
			log.Print(err)
		}
		if settled && err == nil {
			time.Sleep(settledPeriod)
		} else {
			time.Sleep(unsettledPeriod)
		}
	}
}

// settle is idempotent. settled means: each node has an address and a pod range, ours is in the file.
func settle(nodes []corev1.Node, ownAddress, writtenRange string) (settled bool, written string, err error) {
	settled = true
	for _, node := range nodes {
		address := internalAddress(node)
		switch {
		case address == "" || node.Spec.PodCIDR == "":
			settled = false
		case address != ownAddress:
			if err := run("ip", "route", "replace", node.Spec.PodCIDR, "via", address); err != nil {
				return false, writtenRange, err
			}
		case writtenRange != node.Spec.PodCIDR:
			if err := writeCNIConfig(node.Spec.PodCIDR); err != nil {
				return false, writtenRange, err
			}
			writtenRange = node.Spec.PodCIDR
		}
	}
	return settled && writtenRange != "", writtenRange, nil
}

func internalAddress(node corev1.Node) string {
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			return address.Address
		}
	}
	return ""
}

// The container runtime reads the folder whenever it changes: the file has to appear whole.
func writeCNIConfig(podRange string) error {
	draft := cniFile + ".draft"
	if err := os.WriteFile(draft, []byte(fmt.Sprintf(cniConfig, podRange)), 0o644); err != nil {
		return err
	}
	return os.Rename(draft, cniFile)
}

func masqueradeOutside(podSubnet string) error {
	rule := []string{
		"POSTROUTING", "-s", podSubnet, "!", "-d", podSubnet,
		"-m", "addrtype", "!", "--dst-type", "LOCAL", "-j", "MASQUERADE",
	}
	if run("iptables", append([]string{"-w", "-t", "nat", "-C"}, rule...)...) == nil {
		return nil
	}
	return run("iptables", append([]string{"-w", "-t", "nat", "-A"}, rule...)...)
}

func run(program string, arguments ...string) error {
	if output, err := exec.Command(program, arguments...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", program, arguments, err, output)
	}
	return nil
}
