// Every program of a Kubernetes node in one binary: the control plane, etcd, kubelet, kube-proxy,
// kubeadm, kubectl and a small network daemon. Which one runs is told by the name of the link it is
// started through, or by the first argument when it is started as "hyperkube".
//
// One binary, because the programs share nearly all of their code: the node image holds it once and
// the container images of the control plane share one layer.
//
// Built and put into a node image by tests/cluster/node_image.py; it is no part of the product.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Programs that bring their own way to run, before those that are a cobra command.
var selfRunning = map[string]func() error{
	"etcd":    func() error { etcdmain.Main(os.Args); return nil },
	"kubeadm": kubeadm.Run,
	"kubectl": func() error { return cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()) },
	"kindnetd": func() error {
		return keepPodNetwork(context.Background())
	},
}

var commands = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
}

func main() {
	name := filepath.Base(os.Args[0])
	if name == "hyperkube" && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	if run, ok := selfRunning[name]; ok {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	command, ok := commands[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "hyperkube: no program called %q\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(command()))
}
